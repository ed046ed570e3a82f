"""Gives a moto server a key that may do everything and a sender that may send, then has it check signatures."""
import json
import sys
import urllib.request

import boto3

asked = json.load(sys.stdin)
before = dict(
    endpoint_url=asked["url"], region_name=asked["region"], aws_access_key_id="any", aws_secret_access_key="any"
)
iam = boto3.client("iam", **before)
iam.create_user(UserName="posthaste")
key = iam.create_access_key(UserName="posthaste")["AccessKey"]
everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
iam.put_user_policy(UserName="posthaste", PolicyName="everything", PolicyDocument=json.dumps(everything))
boto3.client("ses", **before).verify_email_identity(EmailAddress=asked["sender"])
checking = urllib.request.Request(
    asked["url"] + "/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}, method="POST"
)
urllib.request.urlopen(checking).read()
json.dump({"id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}, sys.stdout)
