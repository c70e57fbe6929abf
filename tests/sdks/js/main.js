// Prints the caller's identity with the AWS SDK for JavaScript: see ../README.md.
import { setTimeout as sleep } from "node:timers/promises";
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";

const PAUSE_MS = 5000;
const end = Date.now() + 1000 * Number(process.argv[2] ?? 0);
try {
  const client = new STSClient();
  for (;;) {
    const { Arn } = await client.send(new GetCallerIdentityCommand());
    const { accessKeyId } = await client.config.credentials();
    console.log(Arn, accessKeyId);
    if (Date.now() >= end) break;
    await sleep(PAUSE_MS);
  }
} catch (error) {
  console.error(`${error.name}: ${error.message}`);
  process.exitCode = 1;
}
