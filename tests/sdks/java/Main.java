// Prints the caller's identity with the AWS SDK for Java: see ../README.md.

import software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider;
import software.amazon.awssdk.services.sts.StsClient;

final class Main {
    private static final long PAUSE_MS = 5_000;

    public static void main(String[] arguments) throws InterruptedException {
        long seconds = arguments.length == 0 ? 0 : Long.parseLong(arguments[0]);
        long end = System.nanoTime() + seconds * 1_000_000_000L;
        try (DefaultCredentialsProvider provider = DefaultCredentialsProvider.builder().build();
                StsClient client = StsClient.builder().credentialsProvider(provider).build()) {
            for (;;) {
                String arn = client.getCallerIdentity().arn();
                String key = provider.resolveCredentials().accessKeyId();
                System.out.println(arn + " " + key);
                if (System.nanoTime() - end >= 0) {
                    break;
                }
                Thread.sleep(PAUSE_MS);
            }
        } catch (RuntimeException error) {
            System.err.println(error.getMessage());
            System.exit(1);
        }
    }
}
