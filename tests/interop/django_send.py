"""Django's SMTP back end with nothing set but where the server is. Argument: the port."""
import sys

from django.conf import settings
from django.core.mail import EmailMultiAlternatives, send_mail

settings.configure(EMAIL_HOST="127.0.0.1", EMAIL_PORT=int(sys.argv[1]))
assert send_mail("Grüße", "Grüße\n.\n", "Shop <shop@home.test>", ["you@far.test"]) == 1
message = EmailMultiAlternatives(
    "Both", "text", "shop@home.test", ["you@far.test"], cc=["cc@far.test"], bcc=["blind@far.test"]
)
message.attach_alternative("<p>text</p>", "text/html")
assert message.send() == 1
