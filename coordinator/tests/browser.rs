//! The dashboard in a real browser: `make browser`. The script of `tests/browser` looks and clicks; this does what it asks for.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::world::{Acting, OPERATE, World, gate, serve_edits};
use coordinator::http;
use coordinator::http::other_services::{Edits, OtherServices};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

async fn serve(acting: &Acting, edits: &str, address: &str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let handle = acting.handle.clone();
    let edits = Some(Edits::new(edits.parse().unwrap(), Some(OPERATE.into())));
    let others = OtherServices { traces: None, edits };
    (address, tokio::spawn(async move { match http::serve(listener, handle, gate(), others).await {} }))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium and Node: make browser"]
async fn pages_in_a_browser() {
    let world = World::new(11).await;
    world.add("Bag/<img src=x onerror=alert(1)>.png");
    world.group(|class| if class == "Bag" { "Accessories" } else { "Outerwear" }).await;
    let mut acting = world.submitted().await;
    let edits = serve_edits().await;
    let (address, mut site) = serve(&acting, &edits, "127.0.0.1:0").await;

    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/browser");
    let mut node = Command::new("node");
    node.current_dir(folder).arg("pages.mjs").arg(format!("http://{address}")).args(std::env::var("BASIN_SHOTS"));
    let mut node = node.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Node is installed");
    let mut answers = node.stdin.take().unwrap();
    let mut last = String::new();
    for line in BufReader::new(node.stdout.take().unwrap()).lines() {
        last = line.unwrap();
        match last.split(' ').collect::<Vec<_>>()[..] {
            ["work", n] => world.work(n.parse().unwrap(), false).await,
            ["fail", n] => world.work(n.parse().unwrap(), true).await,
            ["restart"] => {
                site.abort();
                acting = acting.restart(&world).await;
                site = serve(&acting, &edits, &address.to_string()).await.1;
            }
            _ => continue,
        }
        writeln!(answers, "done {last}").unwrap();
    }
    assert!(node.wait().unwrap().success() && last == "end", "the script says why");
}
