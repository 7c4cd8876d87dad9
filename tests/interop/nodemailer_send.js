// Nodemailer's SMTP and sendmail transports with nothing set but where they are. Arguments: port, sendmail.
const nodemailer = require("nodemailer");

const [port, sendmail] = process.argv.slice(2);
const message = (subject) => ({
  from: "Shop <shop@home.test>",
  to: "you@far.test",
  bcc: "blind@far.test",
  subject,
  text: "Grüße\n.\n",
  html: "<p>Grüße</p>",
});

async function main() {
  await nodemailer.createTransport({ host: "127.0.0.1", port: Number(port) }).sendMail(message("by smtp"));
  await nodemailer.createTransport({ sendmail: true, path: sendmail }).sendMail(message("by sendmail"));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
