"""A message of Python's email package, given to sendmail as its documentation shows. Argument: the sendmail."""
import subprocess
import sys
from email.message import EmailMessage

message = EmailMessage()
message["From"], message["To"], message["Bcc"] = "Shop <shop@home.test>", "Jürgen <you@far.test>", "blind@far.test"
message["Subject"] = "Grüße"
message.set_content("Grüße\n.\n..\n")
message.add_attachment(b"\0\1\2", maintype="application", subtype="octet-stream", filename="ü.bin")
subprocess.run([sys.argv[1], "-t", "-oi"], input=message.as_bytes(), check=True)
