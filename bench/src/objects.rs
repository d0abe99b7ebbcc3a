//! Objects: the store against the S3 SDK alone.
//!
//! The server runs in `basin-bench fleet`, and the measurement in a child of it: so the CPU time is the client's.

use anyhow::{Context, Result, ensure};
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use axum::body::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use store::Store;
use tokio::runtime::Runtime;

use crate::bucket::{BUCKET, Bucket};
use crate::compare::{Effort, Row, timed};
use crate::process::{answer, this_program};

const REGION: &str = "eu-west-1";
/// Size of the parts of a multipart upload, and how many are sent at a time, as in the store.
const PART: usize = 8 << 20;
const PARTS_IN_FLIGHT: usize = 4;
/// Name and bytes of the objects, how many of them, and how many at a time.
const SIZES: [(&str, usize, usize, usize); 3] =
    [("2 KiB", 2 << 10, 4000, 16), ("8 MiB", 8 << 20, 64, 4), ("64 MiB", 64 << 20, 8, 2)];

/// The rows, measured in a child.
pub fn measure_apart(runtime: &Runtime, quick: bool) -> Result<Vec<Row>> {
    let endpoint = runtime.block_on(Bucket::default().serve())?;
    let mut child = this_program()?;
    child.args(["objects", &endpoint]).args(quick.then_some("--quick"));
    child.env("AWS_ACCESS_KEY_ID", "access").env("AWS_SECRET_ACCESS_KEY", "secret").env_remove("AWS_SESSION_TOKEN");
    answer(&mut child)
}

/// The rows, measured here on the server at `endpoint`.
pub async fn measure(endpoint: &str, effort: Effort) -> Result<Vec<Row>> {
    let store = Store::open(&format!("s3://{BUCKET}/ours?endpoint={endpoint}&region={REGION}")).await?;
    let shared = aws_config::defaults(BehaviorVersion::v2026_01_12()).region(Region::from_static(REGION)).load().await;
    let config = aws_sdk_s3::config::Builder::from(&shared).endpoint_url(endpoint).force_path_style(true);
    let alone = Client::from_conf(config.build());
    let mut rows = Vec::new();
    for (name, bytes, count, at_once) in SIZES {
        let count = effort.of(count).max(at_once);
        let (unit, amount) = if bytes < PART { ("objects", count as f64) } else { ("MB", (count * bytes) as f64 / 1e6) };
        let content = Bytes::from_iter((0..bytes).map(|i| i as u8));
        // Objects are written again and again, so that the server does not grow.
        let keys: Vec<String> = (0..count).map(|i| format!("object-{}", i % (2 * at_once))).collect();
        let keys = || stream::iter(&keys).map(anyhow::Ok);

        let put = async |key: &String| anyhow::Ok(store.put(key, content.clone()).await?);
        let put_alone = async |key: &String| put_alone(&alone, key, content.clone()).await;
        let what = format!("objects of {name} written, {at_once} at a time");
        let ours = async || timed(keys().try_for_each_concurrent(at_once, put)).await;
        let theirs = async || timed(keys().try_for_each_concurrent(at_once, put_alone)).await;
        rows.push(Row::measure((&what, unit), effort, amount, ours, theirs).await?);

        let get = async |key: &String| {
            ensure!(store.get(key).await? == content, "{key} has changed");
            Ok(())
        };
        let get_alone = async |key: &String| {
            let answer = alone.get_object().bucket(BUCKET).key(key).send().await?;
            ensure!(answer.body.collect().await?.into_bytes() == content, "{key} has changed");
            Ok(())
        };
        let what = format!("objects of {name} read, {at_once} at a time");
        let ours = async || timed(keys().try_for_each_concurrent(at_once, get)).await;
        let theirs = async || timed(keys().try_for_each_concurrent(at_once, get_alone)).await;
        rows.push(Row::measure((&what, unit), effort, amount, ours, theirs).await?);
    }
    Ok(rows)
}

async fn put_alone(client: &Client, key: &str, content: Bytes) -> Result<()> {
    if content.len() <= PART {
        client.put_object().bucket(BUCKET).key(key).body(content.into()).send().await?;
        return Ok(());
    }
    let begun = client.create_multipart_upload().bucket(BUCKET).key(key).send().await?;
    let id = begun.upload_id().context("the upload has no id")?;
    let send = async |(number, start)| {
        let part = content.slice(start..content.len().min(start + PART));
        let request = client.upload_part().bucket(BUCKET).key(key).upload_id(id).part_number(number);
        let answer = request.body(part.into()).send().await?;
        anyhow::Ok(CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag).build())
    };
    let parts = stream::iter((1..).zip((0..content.len()).step_by(PART))).map(send);
    let parts = parts.buffered(PARTS_IN_FLIGHT).try_collect().await?;
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let request = client.complete_multipart_upload().bucket(BUCKET).key(key).upload_id(id);
    request.multipart_upload(parts).send().await?;
    Ok(())
}
