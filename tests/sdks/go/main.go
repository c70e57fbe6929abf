// Prints the caller's identity with the AWS SDK for Go: see ../README.md.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

const pause = 5 * time.Second

func main() {
	if err := run(context.Background(), duration()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func duration() time.Duration {
	if len(os.Args) < 2 {
		return 0
	}
	seconds, _ := strconv.Atoi(os.Args[1])
	return time.Duration(seconds) * time.Second
}

func run(ctx context.Context, limit time.Duration) error {
	end := time.Now().Add(limit)
	configuration, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return err
	}
	client := sts.NewFromConfig(configuration)
	for {
		identity, err := client.GetCallerIdentity(ctx, nil)
		if err != nil {
			return err
		}
		credentials, err := configuration.Credentials.Retrieve(ctx)
		if err != nil {
			return err
		}
		fmt.Println(*identity.Arn, credentials.AccessKeyID)
		if !time.Now().Before(end) {
			return nil
		}
		time.Sleep(pause)
	}
}
