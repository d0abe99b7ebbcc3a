//! A server with a certificate of a private authority. Only the environment can name that authority, so a process of its own asks.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const URL: &str = "TRUST_TEST_URL";

/// Not a test of its own: the process that asks.
#[test]
fn child_asks() {
    let Ok(url) = std::env::var(URL) else { return };
    let agent: ureq::Agent = ureq::Agent::config_builder().tls_config(trust::tls()).build().into();
    assert_eq!(agent.get(&url).call().unwrap().status(), 200);
}

fn ask(port: u16, variable: &str, value: &Path) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_asks", "--nocapture"]).env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
    let asked = command.env(URL, format!("https://localhost:{port}/")).env(variable, value).output().unwrap();
    (asked.status.success(), String::from_utf8_lossy(&asked.stderr).into_owned())
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn openssl(arguments: &str, folder: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments.split(' ')).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn a_private_authority_is_trusted_when_the_environment_names_it_and_only_then() {
    let folder = tempfile::tempdir().unwrap();
    let make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext \
                subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -keyout key.pem -out own.pem";
    assert!(openssl(make, folder.path()).status().expect("this test needs openssl: apt-get install openssl").success());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let serve = format!("s_server -accept 127.0.0.1:{port} -cert own.pem -key key.pem -www -quiet");
    let _server = Server(openssl(&serve, folder.path()).spawn().unwrap());
    let end = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < end, "the server listens");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (trusted, said) = ask(port, "SSL_CERT_FILE", &folder.path().join("own.pem"));
    assert!(trusted, "{said}");
    for (variable, value) in [("TRUST_TEST_NOTHING", "x"), ("SSL_CERT_FILE", "/nonexistent.pem"), ("SSL_CERT_FILE", "key.pem")] {
        let (trusted, said) = ask(port, variable, Path::new(value));
        assert!(!trusted && said.contains("InvalidCertificate"), "{variable}={value}: {said}");
    }
}
