"""The body that SendGrid's own client makes of a mail; nothing is sent."""
import json
import sys

from sendgrid.helpers.mail import (
    Attachment, Content, CustomArg, Disposition, FileContent, FileName, FileType, From, Header, Mail, Subject, To,
)

asked = json.load(sys.stdin)
mail = Mail()
mail.from_email = From(*asked["from"])
mail.subject = Subject(asked["subject"])
mail.add_to(To(asked["to"]))
mail.add_content(Content("text/plain", asked["text"]))
mail.add_content(Content("text/html", asked["html"]))
for name, kind, content in asked["files"]:
    mail.add_attachment(Attachment(FileContent(content), FileName(name), FileType(kind), Disposition("attachment")))
body = mail.get()
# The client can put these two at a recipient only, or at the mail; Posthaste has them at the mail.
body["headers"] = {name: Header(name, value).get()[name] for name, value in asked["headers"].items()}
body["custom_args"] = {name: CustomArg(name, value).get()[name] for name, value in asked["custom_args"].items()}
json.dump(body, sys.stdout)
