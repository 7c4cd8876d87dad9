//! Our TLS as two well-known scanners see it, with a certificate of an authority of the test's own: sslyze, which
//! holds it against Mozilla's "intermediate" configuration, and testssl.sh, which must find nothing above "info".
//! Submission by STARTTLS and under TLS from the first byte.
//!
//! sslyze is in the Python of `POSTRIDER_TEST_PYTHON`, testssl.sh in the folder of `POSTRIDER_TEST_TESTSSL`; `make test`
//! brings the first, `make scan` both, since testssl.sh takes a minute. What is not there is left out loudly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::Value;

const HOST: &str = "mail.home.test";
const PATIENCE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What testssl.sh says above "info" that is not about our TLS: of its own means, and of the test's certificate, whose
/// authority publishes nothing anywhere.
const NOT_OURS: [&str; 6] =
    ["engine_problem", "old_fart", "scanTime", "DNS_CAArecord", "cert_revocation", "sessionresumption_ticket"];

struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        certificates(folder.path());
        let at = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "hostname = \"{HOST}\"\ndata_dir = \"{}\"\n\
             [listeners.starttls]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]\ntls = \"required\"\n\
             [listeners.implicit]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]\ntls = \"implicit\"\n\
             [tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n\
             [limits]\nconnections_per_ip = 1000\n[queue]\nmin_free = \"1MiB\"\n",
            at("data"),
            at("chain.pem"),
            at("key.pem"),
        );
        std::fs::write(at("postrider.toml"), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        command.args(["serve", "--config", &at("postrider.toml")]).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(std::fs::File::create(at("log")).unwrap()).spawn().unwrap();
        Server { child, folder }
    }

    fn port(&mut self, listener: &str) -> u16 {
        let since = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            let named = format!("name=\"{listener}\"");
            let line = log.lines().find(|line| line.contains("listening") && line.contains(&named));
            if let Some(port) = line.and_then(|line| line.rsplit(':').next()?.trim().parse().ok()) {
                return port;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(since.elapsed() < PATIENCE && ended.is_none(), "the server does not start: {log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// As a public authority would issue it: for 90 days, with where it could be revoked.
fn certificates(folder: &Path) {
    let named = |name: &str| {
        let mut distinguished = DistinguishedName::new();
        distinguished.push(DnType::CommonName, name);
        distinguished
    };
    let (from, to) = (SystemTime::now() - DAY, SystemTime::now() + DAY * 89);
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.distinguished_name = named("Authority of the test");
    (authority.not_before, authority.not_after) = (from.into(), to.into());
    let authority_key = KeyPair::generate().unwrap();
    let root = authority.self_signed(&authority_key).unwrap();
    let mut leaf = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
    leaf.distinguished_name = named(HOST);
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.crl_distribution_points = vec![CrlDistributionPoint { uris: vec!["http://crl.home.test/ca.crl".to_owned()] }];
    leaf.use_authority_key_identifier_extension = true;
    (leaf.not_before, leaf.not_after) = (from.into(), to.into());
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&leaf_key, &Issuer::new(authority, authority_key)).unwrap();
    std::fs::write(folder.join("ca.pem"), root.pem()).unwrap();
    std::fs::write(folder.join("chain.pem"), leaf.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), leaf_key.serialize_pem()).unwrap();
}

/// Past the test harness, which keeps the output of good tests to itself.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The Python that has sslyze.
fn sslyze() -> Option<String> {
    let given = std::env::var("POSTRIDER_TEST_PYTHON");
    let python = given.clone().unwrap_or_else(|_| "python3".into());
    let probe = Command::new(&python).args(["-c", "import sslyze"]).stderr(Stdio::null()).status();
    let is_there = probe.is_ok_and(|status| status.success());
    assert!(is_there || given.is_err(), "{python} has no sslyze");
    if !is_there {
        say("WARNING: the scan by sslyze is SKIPPED: there is no Python with sslyze; `make test` makes one");
    }
    is_there.then_some(python)
}

#[test]
fn sslyze_finds_nothing() {
    let Some(python) = sslyze() else { return };
    let mut server = Server::start();
    for (listener, starttls) in [("starttls", &["--starttls", "smtp"][..]), ("implicit", &[])] {
        let target = format!("{HOST}:{}{{127.0.0.1}}", server.port(listener));
        let found = server.file(&format!("{listener}.json"));
        let output = Command::new(&python)
            .args(["-m", "sslyze", "--mozilla_config", "intermediate", "--resum", "--early_data"])
            .arg("--certinfo_ca_file")
            .arg(server.file("ca.pem"))
            .arg("--json_out")
            .arg(&found)
            .args(starttls)
            .arg(target)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json: Value = serde_json::from_slice(&std::fs::read(&found).unwrap()).unwrap();
        let scan = &json["server_scan_results"][0];
        assert_eq!(scan["scan_status"], "COMPLETED", "{listener}: {text}");
        let verdicts = [
            ("/heartbleed/result/is_vulnerable_to_heartbleed", Value::from(false)),
            ("/openssl_ccs_injection/result/is_vulnerable_to_ccs_injection", false.into()),
            ("/robot/result/robot_result", "NOT_VULNERABLE_RSA_NOT_SUPPORTED".into()),
            ("/session_renegotiation/result/is_vulnerable_to_client_renegotiation_dos", false.into()),
            ("/session_renegotiation/result/supports_secure_renegotiation", true.into()),
            ("/tls_compression/result/supports_compression", false.into()),
            ("/tls_fallback_scsv/result/supports_fallback_scsv", true.into()),
            ("/tls_1_3_early_data/result/supports_early_data", false.into()),
            ("/tls_extended_master_secret/result/supports_ems_extension", true.into()),
            ("/ssl_2_0_cipher_suites/result/is_tls_version_supported", false.into()),
            ("/ssl_3_0_cipher_suites/result/is_tls_version_supported", false.into()),
            ("/tls_1_0_cipher_suites/result/is_tls_version_supported", false.into()),
            ("/tls_1_1_cipher_suites/result/is_tls_version_supported", false.into()),
            ("/tls_1_2_cipher_suites/result/is_tls_version_supported", true.into()),
            ("/tls_1_3_cipher_suites/result/is_tls_version_supported", true.into()),
        ];
        for (place, wanted) in verdicts {
            assert_eq!(scan["scan_result"].pointer(place), Some(&wanted), "{listener}: {place}");
        }
        assert!(text.contains("OK - Compliant"), "{listener}: {text}");
        assert!(output.status.success(), "{listener}: {}: {text}", output.status);
    }
}

#[test]
fn testssl_finds_nothing_above_info() {
    let Some(place) = std::env::var_os("POSTRIDER_TEST_TESTSSL").map(PathBuf::from) else {
        return say("WARNING: the scan by testssl.sh is SKIPPED: it takes a minute, `make scan` does it");
    };
    let mut server = Server::start();
    let path = format!("{}:{}", place.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let scans: Vec<_> = [("starttls", &["--starttls", "smtp"][..]), ("implicit", &[])]
        .into_iter()
        .map(|(listener, starttls)| {
            let found = server.file(&format!("{listener}.json"));
            let scan = Command::new(place.join("usr/bin/testssl"))
                .env("TESTSSL_INSTALL_DIR", place.join("etc/testssl"))
                .env("PATH", &path)
                .args(["--quiet", "--color", "0", "--warnings", "off", "--openssl", "/usr/bin/openssl"])
                .args(["--ip", "127.0.0.1", "--add-ca"])
                .arg(server.file("ca.pem"))
                .arg("--jsonfile")
                .arg(&found)
                .args(starttls)
                .arg(format!("{HOST}:{}", server.port(listener)))
                .stdin(Stdio::null())
                .stdout(std::fs::File::create(server.file(&format!("{listener}.txt"))).unwrap())
                .spawn()
                .unwrap();
            (listener, found, scan)
        })
        .collect();
    for (listener, found, mut scan) in scans {
        scan.wait().unwrap();
        let text = std::fs::read_to_string(server.file(&format!("{listener}.txt"))).unwrap();
        let json: Value = serde_json::from_slice(&std::fs::read(&found).unwrap()).unwrap();
        let findings = json.as_array().unwrap();
        // A scan that gets nowhere finds nothing either.
        for id in ["TLS1_2", "TLS1_3", "cipher_order", "heartbleed", "ROBOT", "LUCKY13", "cert_chain_of_trust"] {
            assert!(findings.iter().any(|finding| finding["id"] == id), "{listener}: nothing on {id}: {text}");
        }
        let bad: Vec<&Value> = findings
            .iter()
            .filter(|finding| !["OK", "INFO", "DEBUG"].contains(&finding["severity"].as_str().unwrap_or_default()))
            .filter(|finding| !NOT_OURS.contains(&finding["id"].as_str().unwrap_or_default()))
            .collect();
        assert!(bad.is_empty(), "{listener}: {bad:#?}");
    }
}
