//! How a message comes in: each way of the set, against a whole server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::forms::{Content, cuts, pieces, tail};
use crate::support::server::HOSTNAME;

/// The beginning of a PROXY v2 header: TCP over IPv4; and its addresses, from 192.0.2.7 to 127.0.0.1.
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11";
const PROXIED: &[u8] = b"\xc0\0\x02\x07\x7f\0\0\x01\x30\x39\0\x19";
/// PP2_TYPE_NOOP: a value that means nothing.
const NOOP: u8 = 4;
/// A file that lies about longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the doors are.
#[derive(Clone)]
pub struct Doors {
    pub submission: SocketAddr,
    pub implicit: SocketAddr,
    /// Behind a proxy.
    pub proxied: SocketAddr,
    pub data_dir: Arc<Path>,
    pub tls: TlsConnector,
}

impl Doors {
    pub fn new([submission, implicit, proxied]: [SocketAddr; 3], data_dir: &Path) -> Doors {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(data_dir.join("tls/self-signed.crt")).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = TlsConnector::from(Arc::new(config));
        Doors { submission, implicit, proxied, data_dir: data_dir.into(), tls }
    }
}

/// One message on its way in.
pub struct Probe {
    pub carrier: String,
    pub split: String,
    pub recipient: String,
    pub content: Content,
}

/// Sends it, and gives how many messages the server says it has taken.
pub async fn carry(doors: &Doors, probe: &Probe) -> usize {
    let name = ServerName::try_from(HOSTNAME).unwrap();
    let connect = async |address| {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    };
    match probe.carrier.as_str() {
        "DATA" => by_data(connect(doors.submission).await, probe).await,
        "DATA-over-STARTTLS" => {
            let mut stream = connect(doors.submission).await;
            stream.write_all(b"EHLO c.test\r\nSTARTTLS\r\n").await.unwrap();
            assert!(until(&mut stream, b"\r\n220 ").await);
            by_data(doors.tls.connect(name, stream).await.unwrap(), probe).await
        }
        "DATA-over-implicit-TLS" => {
            by_data(doors.tls.connect(name, connect(doors.implicit).await).await.unwrap(), probe).await
        }
        "BDAT-single" => by_bdat(connect(doors.submission).await, probe, &[]).await,
        "BDAT-many-chunks" => {
            let cuts = cuts(&probe.split, &probe.content).remove(0);
            by_bdat(connect(doors.submission).await, probe, &cuts).await
        }
        "BDAT-1-byte-chunks" => {
            let cuts = cuts("every-byte-own-segment", &probe.content).remove(0);
            by_bdat(connect(doors.submission).await, probe, &cuts).await
        }
        "after-PROXY-v2-header" => {
            let mut stream = connect(doors.proxied).await;
            let header = header(probe);
            let octets = ["every-byte-own-segment", "tls-record-per-byte"].contains(&probe.split.as_str());
            let pieces = if octets { header.chunks(1) } else { header.chunks(header.len()) };
            for piece in pieces {
                stream.write_all(piece).await.unwrap();
            }
            by_data(stream, probe).await
        }
        "pickup-file" => by_file(&doors.data_dir.join("in"), probe).await,
        "http-api" => by_http(&doors.data_dir.join("admin.sock"), probe).await,
        other => panic!("what is {other}?"),
    }
}

/// Says for whom the proxy speaks, and has the form and a whole message in it: whoever miscounts the header reads them as
/// the client's own words.
fn header(probe: &Probe) -> Vec<u8> {
    let form = &probe.content.bytes[probe.content.at..probe.content.at + probe.content.form_len];
    let hidden = [form, b"\r\n", &tail(&probe.recipient.replacen('p', "v", 1))].concat();
    let vector = [&[NOOP], &(hidden.len() as u16).to_be_bytes()[..], &hidden].concat();
    let length = ((PROXIED.len() + vector.len()) as u16).to_be_bytes();
    [PROXY_V2, &length, PROXIED, &vector].concat()
}

/// Reads until this has come; false if the server closes before.
async fn until<S: AsyncRead + Unpin>(stream: &mut S, wanted: &[u8]) -> bool {
    let mut heard = Vec::new();
    while stream.read_buf(&mut heard).await.is_ok_and(|bytes| bytes > 0) {
        if heard.windows(wanted.len()).any(|window| window == wanted) {
            return true;
        }
    }
    false
}

fn envelope(probe: &Probe) -> Vec<u8> {
    format!("EHLO c.test\r\nMAIL FROM:<shop@home.test>\r\nRCPT TO:<{}>\r\n", probe.recipient).into_bytes()
}

async fn by_data<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, probe: &Probe) -> usize {
    let begun = stream.write_all(&[envelope(probe), b"DATA\r\n".to_vec()].concat()).await.is_ok();
    if !begun || stream.flush().await.is_err() || !until(&mut stream, b"\r\n354 ").await {
        return 0;
    }
    let all = [probe.content.bytes.as_slice(), b"\r\n.\r\nQUIT\r\n"].concat();
    for piece in pieces(&all, &cuts(&probe.split, &probe.content)[0]) {
        // The server may close in the middle: it has seen enough.
        if stream.write_all(piece).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        if probe.split == "1s-pause-inside" {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    queued(stream).await
}

async fn by_bdat(mut stream: TcpStream, probe: &Probe, cuts: &[usize]) -> usize {
    let mut script = envelope(probe);
    for piece in pieces(&probe.content.bytes, cuts) {
        script.extend_from_slice(format!("BDAT {}\r\n", piece.len()).as_bytes());
        script.extend_from_slice(piece);
    }
    script.extend_from_slice(b"BDAT 0 LAST\r\nQUIT\r\n");
    // As above.
    let _ = stream.write_all(&script).await;
    queued(stream).await
}

async fn queued<S: AsyncRead + Unpin>(mut stream: S) -> usize {
    let mut heard = Vec::new();
    // A connection that breaks off has still said what it said.
    let _ = stream.read_to_end(&mut heard).await;
    String::from_utf8_lossy(&heard).matches(" queued as ").count()
}

/// One that the folder has taken is gone from it, one that it has not lies beside with another name.
async fn by_file(folder: &Path, probe: &Probe) -> usize {
    let name = probe.recipient.split('@').next().unwrap();
    let block = format!("X-Sender: shop@home.test\r\nX-Receiver: {}\r\n", probe.recipient);
    let (hidden, file) = (folder.join(format!("{name}.new")), folder.join(format!("{name}.eml")));
    std::fs::write(&hidden, [block.as_bytes(), &probe.content.bytes].concat()).unwrap();
    std::fs::rename(&hidden, &file).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|other| other.starts_with(&format!("{name}.")))
            .collect();
        if names.is_empty() {
            return 1;
        }
        if names.iter().any(|name| name.ends_with(".bad")) {
            return 0;
        }
        assert!(Instant::now() < deadline, "{names:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn by_http(socket: &Path, probe: &Probe) -> usize {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let head = format!(
        "POST /api/v1/messages?from=shop@home.test&to={} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: message/rfc822\r\nContent-Length: {}\r\n\r\n",
        probe.recipient,
        probe.content.bytes.len()
    );
    // One that is too large may be answered before it is read.
    let _ = stream.write_all(&[head.as_bytes(), &probe.content.bytes].concat()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 202") || answer.starts_with("HTTP/1.1 4"), "{answer}");
    usize::from(answer.starts_with("HTTP/1.1 202"))
}
