//! The folder for messages that no server takes just now. Who calls may put a file in but not see what
//! is there; so a file has to be readable for the server, and a name that nobody guesses keeps it from others.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::letter::Letter;
use super::options::Options;
use super::submit::xtext;
use crate::cli::send::random_name;
use crate::clock::{Clock, Millis};
use crate::intake::pickup::envelope::END_OF_BLOCK;
use crate::message::Ret;

/// The server's user reads it; see above.
const FILE_MODE: u32 = 0o644;

#[derive(Debug)]
pub(super) enum NotPut {
    /// The server keeps it shut: programs on this machine may not send.
    Forbidden,
    Failed(io::Error),
}

impl From<io::Error> for NotPut {
    fn from(error: io::Error) -> NotPut {
        NotPut::Failed(error)
    }
}

/// May anybody on this machine put something in?
pub(super) fn is_open(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_dir() && meta.permissions().mode() & 0o003 == 0o003)
}

/// On return it is on disk.
pub(super) fn put(folder: &Path, letter: &Letter, options: &Options) -> Result<(), NotPut> {
    fs::symlink_metadata(folder)?;
    if !is_open(folder) {
        return Err(NotPut::Forbidden);
    }
    let random = random_name().map_err(|_| io::Error::other("there are no random numbers"))?;
    let stem = name(Clock::System.now(), std::process::id(), &random);
    let (tmp, eml) = (folder.join(format!("{stem}.tmp")), folder.join(format!("{stem}.eml")));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&tmp)?;
    let written = write(&mut file, letter, options).and_then(|()| fs::rename(&tmp, &eml));
    if let Err(error) = written {
        // Only ours, and of no use to anybody.
        let _ = fs::remove_file(&tmp);
        return Err(error.into());
    }
    // The new name must be on disk too. Who may not read the folder cannot sync it, only all of its file system.
    match File::open(folder) {
        Ok(folder) => folder.sync_all()?,
        Err(_) => rustix::fs::syncfs(&file).map_err(io::Error::from)?,
    }
    Ok(())
}

fn name(now: Millis, process: u32, random: &str) -> String {
    format!("{now:013}.{process}.{random}")
}

fn write(file: &mut File, letter: &Letter, options: &Options) -> io::Result<()> {
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    file.write_all(head(letter, options).as_bytes())?;
    file.write_all(&letter.content)?;
    file.sync_all()
}

/// The envelope, as a pickup folder reads it.
fn head(letter: &Letter, options: &Options) -> String {
    let mut head = format!("X-Sender: <{}>", letter.sender);
    match options.ret {
        Some(Ret::Full) => head += " RET=FULL",
        Some(Ret::Headers) => head += " RET=HDRS",
        None => {}
    }
    if let Some(envid) = &options.envid {
        head += &format!(" ENVID={}", xtext(envid));
    }
    head += "\r\n";
    let notify = options.notify.as_ref().map_or_else(String::new, |notify| format!(" NOTIFY={notify}"));
    for recipient in &letter.recipients {
        head += &format!("X-Receiver: <{recipient}>{notify}\r\n");
    }
    // The message may begin with fields of these names itself.
    head += &format!("{END_OF_BLOCK}: 0\r\n");
    head
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::PickupFormat;
    use crate::intake::pickup::envelope::read_eml;
    use crate::message::{Address, Notify, ReversePath};

    fn letter() -> Letter {
        Letter {
            sender: ReversePath::Address(Address::parse("a@x.test").unwrap()),
            recipients: vec![Address::parse("b@x.test").unwrap(), Address::parse("\"c d\"@x.test").unwrap()],
            content: b"X-Receiver: c@x.test\r\nFrom: a@x.test\r\nTo: x@x.test\r\n\r\n.\r\n..x\r\n".to_vec(),
        }
    }

    #[test]
    fn what_is_put_there_is_what_the_server_reads() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o1733)).unwrap();
        let options = Options {
            notify: Some("NEVER".into()),
            ret: Some(Ret::Headers),
            envid: Some("a b+c".into()),
            ..Options::default()
        };
        put(folder.path(), &letter(), &options).unwrap();
        let [path] =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>().try_into().unwrap();
        assert!(path.extension().is_some_and(|ending| ending == "eml"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        let eml = read_eml(&fs::read(path).unwrap(), PickupFormat::Replay, None).unwrap();
        assert_eq!(eml.content, letter().content);
        assert_eq!(eml.envelope.mail_from, letter().sender);
        assert_eq!(eml.envelope.dsn.envid.as_deref(), Some("a b+c"));
        assert_eq!(eml.envelope.dsn.ret, Some(Ret::Headers));
        let to: Vec<_> = eml.envelope.recipients.iter().map(|r| (r.address.to_string(), r.notify)).collect();
        assert_eq!(to, [("b@x.test".into(), Notify::Never), ("\"c d\"@x.test".into(), Notify::Never)]);
    }

    #[test]
    fn a_folder_that_is_shut_says_no() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        assert!(matches!(put(folder.path(), &letter(), &Options::default()), Err(NotPut::Forbidden)));
        let missing = folder.path().join("none");
        assert!(matches!(put(&missing, &letter(), &Options::default()), Err(NotPut::Failed(_))));
    }
}
