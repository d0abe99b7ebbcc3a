//! The URL of a broker, parsed once: address, credentials, time limits.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::{Channel, DEFAULT_DELIVERY_LIMIT, Error};

const USER_VARIABLE: &str = "BASIN_AMQP_USER";
const PASSWORD_VARIABLE: &str = "BASIN_AMQP_PASSWORD";
/// User and password that a fresh RabbitMQ accepts from its own machine.
const DEFAULT_USER: &str = "guest";
const SUPPORTED: &str =
    "prefix, delivery_limit, consumer_timeout, heartbeat, give_up, password_file, ca_file, cert_file and key_file";

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) vhost: String,
    pub(super) user: String,
    password: Password,
    /// PEM file with authorities trusted besides the system's.
    pub(super) ca_file: Option<PathBuf>,
    /// PEM files with this client's certificate and its key, read at every connect.
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    /// Start of every queue name.
    pub(super) prefix: String,
    pub(super) delivery_limit: u32,
    /// How long the broker waits for a delivery to be settled.
    pub(super) consumer_timeout: Duration,
    /// Also the limit of one response of the broker.
    pub(super) heartbeat: Duration,
    /// How long an operation waits for the broker before it fails.
    pub(super) give_up: Duration,
}

#[derive(Clone)]
enum Password {
    Known(String),
    /// Read at every connect, so that the password can change while the service runs.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Password::Known(_) => f.write_str("(hidden)"),
            Password::File(path) => write!(f, "(in {})", path.display()),
        }
    }
}

impl Options {
    pub(super) fn parse(text: &str) -> Result<Options, Error> {
        let url = Url::parse(text).map_err(|e| invalid(e.to_string()))?;
        let tls = url.scheme() == "amqps";
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| invalid("the URL has no host"))?;
        let mut options = Options {
            tls,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
            vhost: match url.path() {
                "" | "/" => "/".to_owned(),
                path => decoded(&path[1..], "the virtual host")?,
            },
            user: match url.username() {
                "" => std::env::var(USER_VARIABLE).unwrap_or_else(|_| DEFAULT_USER.into()),
                user => decoded(user, "the user name")?,
            },
            password: match url.password() {
                None => Password::Known(std::env::var(PASSWORD_VARIABLE).unwrap_or_else(|_| DEFAULT_USER.into())),
                Some(password) => Password::Known(decoded(password, "the password")?),
            },
            ca_file: None,
            cert_file: None,
            key_file: None,
            prefix: "basin".into(),
            delivery_limit: DEFAULT_DELIVERY_LIMIT,
            consumer_timeout: Duration::from_secs(6 * 3600),
            heartbeat: Duration::from_secs(30),
            give_up: Duration::from_secs(600),
        };
        for (name, value) in url.query_pairs() {
            options.set(&name, &value, url.password().is_some())?;
        }
        if !tls && [&options.ca_file, &options.cert_file, &options.key_file].into_iter().any(Option::is_some) {
            return Err(invalid("ca_file, cert_file and key_file need amqps:"));
        }
        if options.cert_file.is_some() != options.key_file.is_some() {
            return Err(invalid("cert_file and key_file need each other"));
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str, password_in_url: bool) -> Result<(), Error> {
        match name {
            "prefix" => {
                self.prefix =
                    name_part(value).ok_or_else(|| invalid("prefix must have 1 to 60 characters of a-z A-Z 0-9 . _ -"))?
            }
            "delivery_limit" => self.delivery_limit = number("delivery_limit", value, 1..=1_000_000)?,
            "consumer_timeout" => self.consumer_timeout = seconds("consumer_timeout", value, 1..=2_000_000)?,
            "heartbeat" => self.heartbeat = seconds("heartbeat", value, 1..=3600)?,
            "give_up" => self.give_up = seconds("give_up", value, 1..=1_000_000)?,
            "password_file" if password_in_url => return Err(invalid("set a password or password_file, not both")),
            "password_file" => self.password = Password::File(value.into()),
            "ca_file" => self.ca_file = Some(value.into()),
            "cert_file" => self.cert_file = Some(value.into()),
            "key_file" => self.key_file = Some(value.into()),
            _ => return Err(invalid(format!("unknown option (supported: {SUPPORTED})"))),
        }
        Ok(())
    }

    pub(super) fn password(&self) -> Result<String, String> {
        match &self.password {
            Password::Known(password) => Ok(password.clone()),
            Password::File(path) => std::fs::read_to_string(path)
                .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
                .map_err(|e| format!("cannot read the password file {}: {e}", path.display())),
        }
    }

    /// What TLS needs, read now: authorities beside the system's, and the client's own certificate.
    pub(super) fn tls_config(&self) -> io::Result<OwnedTLSConfig> {
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|e| io::Error::other(format!("cannot read {}: {e}", path.display())));
        let authorities =
            self.ca_file.as_ref().map(|path| Ok::<_, io::Error>(String::from_utf8_lossy(&read(path)?).into_owned()));
        let identity = self.cert_file.as_ref().zip(self.key_file.as_ref());
        let identity = identity.map(|(cert, key)| Ok::<_, io::Error>(OwnedIdentity::PKCS8 { pem: read(cert)?, key: read(key)? }));
        Ok(OwnedTLSConfig { identity: identity.transpose()?, cert_chain: authorities.transpose()? })
    }

    pub(super) fn queue_name(&self, channel: Channel) -> String {
        format!("{}.{}", self.prefix, channel.name())
    }

    /// Host and port, without credentials.
    pub(super) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Interval of the watchdog's requests.
    pub(super) fn watch_interval(&self) -> Duration {
        (self.heartbeat / 2).min(Duration::from_secs(15))
    }
}

/// `value` as a part of a queue name.
pub(super) fn name_part(value: &str) -> Option<String> {
    let fits = (1..=60).contains(&value.len()) && value.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    fits.then(|| value.to_owned())
}

fn seconds(name: &str, value: &str, range: std::ops::RangeInclusive<u32>) -> Result<Duration, Error> {
    number(name, value, range).map(|n| Duration::from_secs(n.into()))
}

fn number(name: &str, value: &str, range: std::ops::RangeInclusive<u32>) -> Result<u32, Error> {
    let number = value.parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| invalid(format!("{name} must be a whole number from {} to {}", range.start(), range.end())))
}

fn decoded(text: &str, what: &str) -> Result<String, Error> {
    let complete = |part: &str| part.get(..2).is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    if !text.split('%').skip(1).all(complete) {
        return Err(invalid(format!("{what} has an invalid % sequence")));
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| invalid(format!("{what} is not UTF-8")))?;
    Ok(decoded.into_owned())
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::InvalidUrl(format!("amqp: {}", reason.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read() {
        let query = "prefix=x.y&delivery_limit=7&consumer_timeout=1&heartbeat=5&give_up=9&ca_file=/ca";
        let options = Options::parse(&format!("amqps://us%20er:p%40ss@[::1]/a%2fb?{query}")).unwrap();
        assert!(options.tls);
        assert_eq!((options.host.as_str(), options.port, options.vhost.as_str()), ("::1", 5671, "a/b"));
        assert_eq!((options.user.as_str(), options.password().unwrap().as_str()), ("us er", "p@ss"));
        assert_eq!((options.prefix.as_str(), options.delivery_limit), ("x.y", 7));
        assert_eq!(options.heartbeat, Duration::from_secs(5));
        assert_eq!(options.give_up, Duration::from_secs(9));
        assert!(!format!("{options:?}").contains("p@ss"));
    }

    #[test]
    fn a_client_certificate_needs_its_key_and_tls() {
        assert!(Options::parse("amqps://h?cert_file=/c&key_file=/k").is_ok());
        for url in ["amqps://h?cert_file=/c", "amqps://h?key_file=/k", "amqp://h?cert_file=/c&key_file=/k"] {
            assert!(Options::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn defaults_are_those_of_a_fresh_broker() {
        let options = Options::parse("amqp://localhost").unwrap();
        assert_eq!((options.port, options.vhost.as_str(), options.prefix.as_str()), (5672, "/", "basin"));
        assert_eq!(Options::parse("amqp://localhost/").unwrap().vhost, "/");
    }

    #[test]
    fn the_password_file_is_read_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let options = Options::parse(&format!("amqp://u@h?password_file={}", file.path().display())).unwrap();
        for password in ["old", "new"] {
            std::fs::write(file.path(), format!("{password}\n")).unwrap();
            assert_eq!(options.password().unwrap(), password);
        }
    }
}
