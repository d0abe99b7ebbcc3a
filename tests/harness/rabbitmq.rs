//! A RabbitMQ of one test: a private node with its own ports, name and directory, on 127.0.0.1 only.
//! It ends with its value, and also when the test process dies or keeps the value in a `static`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A cold start takes 6 s on an idle machine of 2 cores.
const START: Duration = Duration::from_secs(120);
const HELP: &str = "apt-get install rabbitmq-server, or let BASIN_TEST_RABBITMQ name the `rabbitmq-server` of another one";

pub struct RabbitMq {
    directory: PathBuf,
    port: u16,
    dist_port: u16,
    epmd_port: u16,
    node: Option<Group>,
    /// Below the node, so that it ends after it: its end takes the directory along.
    _epmd: Group,
    /// More lines of its configuration.
    settings: String,
}

impl RabbitMq {
    /// Starts a node and waits until it answers.
    pub fn start() -> RabbitMq {
        RabbitMq::start_with(String::new())
    }

    /// Starts a node with more lines of configuration.
    pub fn start_with(settings: String) -> RabbitMq {
        let directory = tempfile::Builder::new().prefix("basin-rabbitmq-").tempdir().unwrap().keep();
        let [port, dist_port, epmd_port] = free_ports();
        let mut epmd = Command::new("epmd");
        epmd.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]);
        let epmd = Group::start(&mut epmd, Some(&directory));
        let mut broker = RabbitMq { directory, port, dist_port, epmd_port, node: None, _epmd: epmd, settings };
        broker.start_again();
        broker
    }

    /// A URL of queues that no other test has, at a broker for all tests of a program that do not disturb it.
    pub fn own_url(options: &str) -> String {
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let test = TESTS.fetch_add(1, Ordering::Relaxed);
        RabbitMq::shared().url(&format!("prefix=test{test}&{options}"))
    }

    /// The broker of [`RabbitMq::own_url`].
    pub fn shared() -> &'static RabbitMq {
        static BROKER: OnceLock<RabbitMq> = OnceLock::new();
        BROKER.get_or_init(RabbitMq::start)
    }

    /// Its URL; `options` are those of the URL, as `a=b&c=d`.
    pub fn url(&self, options: &str) -> String {
        self.url_of("guest", "guest", options)
    }

    pub fn url_of(&self, user: &str, password: &str, options: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/?{options}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn processes(&self) -> Vec<u32> {
        let group = self.node.as_ref().map(|node| node.leader.id().to_string());
        let of_node = |id: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            // Behind the name in brackets: state, parent, group.
            stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(2)).map(str::to_owned) == group
        };
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(of_node).collect()
    }

    /// Whether the register of quorum queues on its disk knows `queue`. It is written some seconds after a declaration;
    /// a RabbitMQ 3.10 that is killed before that comes back with a queue that cannot be consumed.
    pub fn has_on_disk(&self, queue: &str) -> bool {
        let name = format!("basin-{}@localhost", self.port);
        let register = self.directory.join("mnesia").join(&name).join("quorum").join(&name).join("names.dets");
        let register = std::fs::read(register).unwrap_or_default();
        register.windows(queue.len()).any(|bytes| bytes == queue.as_bytes())
    }

    /// Kills it as a power cut would; what it had on disk stays.
    pub fn kill9(&mut self) {
        drop(self.node.take().expect("the node runs"));
    }

    /// Stops its process in the middle of what it does: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.node.as_ref().expect("the node runs").signal("STOP");
    }

    pub fn thaw(&self) {
        self.node.as_ref().expect("the node runs").signal("CONT");
    }

    /// Raises or ends the alarm of a full disk: the broker accepts no messages meanwhile.
    pub fn set_disk_alarm(&self, on: bool) {
        let mut control = Command::new(server().with_file_name("rabbitmqctl"));
        control.args([
            "--node",
            &format!("basin-{}@localhost", self.port),
            "set_disk_free_limit",
            if on { "100000GB" } else { "50MB" },
        ]);
        control.env("HOME", &self.directory).env("ERL_EPMD_PORT", self.epmd_port.to_string());
        let output = control.output().expect("rabbitmqctl runs");
        assert!(output.status.success(), "{}", crate::output_text(&output));
    }

    /// Starts it, with what is on its disk, and waits until it answers.
    pub fn start_again(&mut self) {
        assert!(self.node.is_none(), "the node runs");
        let file = |name: &str| self.directory.join(name);
        std::fs::write(file("enabled_plugins"), "[].\n").unwrap();
        let configuration =
            format!("listeners.tcp.1 = 127.0.0.1:{}\ndisk_free_limit.absolute = 50MB\n{}", self.port, self.settings);
        std::fs::write(file("rabbitmq.conf"), configuration).unwrap();
        let mut server = Command::new(server());
        server
            // It writes its dumps there.
            .current_dir(&self.directory)
            .env("HOME", &self.directory)
            .env("RABBITMQ_NODENAME", format!("basin-{}@localhost", self.port))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_MNESIA_BASE", file("mnesia"))
            .env("RABBITMQ_LOG_BASE", file("log"))
            .env("RABBITMQ_PID_FILE", file("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins"))
            .env("RABBITMQ_CONFIG_FILE", file("rabbitmq"))
            .env("RABBITMQ_CONF_ENV_FILE", file("no-environment"))
            // The tick: how often it looks for deliveries older than its `consumer_timeout`.
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 1:1 +sbwt none -rabbit channel_tick_interval 500 -kernel inet_dist_use_interface {127,0,0,1}",
            )
            .env_remove("NOTIFY_SOCKET");
        self.node = Some(Group::start(&mut server, None));
        let end = Instant::now() + START;
        while !self.answers() {
            assert!(Instant::now() < end, "RabbitMQ does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether it sends the first frame of AMQP.
    fn answers(&self) -> bool {
        let greet = || -> std::io::Result<u8> {
            let mut socket = TcpStream::connect(("127.0.0.1", self.port))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.write_all(b"AMQP\x00\x00\x09\x01")?;
            let mut first = [0];
            socket.read_exact(&mut first)?;
            Ok(first[0])
        };
        greet().is_ok_and(|first| first == 1)
    }

    fn log(&self) -> String {
        crate::files(&self.directory.join("log")).iter().map(|log| crate::tail(log, 40)).collect::<Vec<_>>().join("\n")
    }
}

/// The program where Debian has it, or where `BASIN_TEST_RABBITMQ` says.
fn server() -> PathBuf {
    let server = std::env::var_os("BASIN_TEST_RABBITMQ").map_or("/usr/lib/rabbitmq/bin/rabbitmq-server".into(), PathBuf::from);
    assert!(server.exists(), "this test needs a RabbitMQ, but {} is not there; {HELP}", server.display());
    server
}

/// Ports on which no process listens.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// A process with all its children.
struct Group {
    leader: Child,
    /// Kills the group, and removes the directory, as soon as its input ends: with us, in any case.
    reaper: Child,
}

impl Group {
    fn start(command: &mut Command, directory: Option<&Path>) -> Group {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = quiet.process_group(0).spawn();
        let leader = started.unwrap_or_else(|e| panic!("this test needs a RabbitMQ with its epmd: {e}; {HELP}"));
        let script = r#"read -r _; kill -s KILL -- "-$0" 2>/dev/null; [ -z "$1" ] || until rm -rf -- "$1"; do sleep 0.1; done"#;
        let mut reaper = Command::new("sh");
        reaper.args(["-c", script, &leader.id().to_string()]).args(directory);
        reaper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let reaper = reaper.spawn().expect("there is a shell");
        Group { leader, reaper }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), "--", &format!("-{}", self.leader.id())]).status();
        assert!(sent.expect("there is kill").success(), "cannot send {signal}");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(self.reaper.stdin.take());
        self.reaper.wait().expect("the reaper is our child");
        self.leader.wait().expect("the leader is our child");
    }
}
