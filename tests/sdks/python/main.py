"""Prints the caller's identity with boto3: see ../README.md."""

import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

PAUSE = 5


def main():
    end = time.monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else 0)
    session = boto3.Session()
    client = session.client("sts")
    while True:
        arn = client.get_caller_identity()["Arn"]
        key = session.get_credentials().get_frozen_credentials().access_key
        print(arn, key, flush=True)
        if time.monotonic() >= end:
            return
        time.sleep(PAUSE)


try:
    main()
except (BotoCoreError, ClientError) as error:
    sys.exit(str(error))
