//! `basin redrive`: images of a finished run, projected again.

use std::process::ExitCode;

use client::api::RedriveRequest;
use client::{Client, LONG};

use crate::connection::Connection;

#[derive(clap::Args)]
pub struct Args {
    /// Name of the run, which must be finished.
    run: String,
    /// Conditions joined by commas, all of which an image must meet. Give the option several times to select images that meet one
    /// of the lists. Fields: class, reason, image (`*` matches any text, `\*` a star), loss, inverted_loss, l1, l2, lpips.
    /// Operators: = != < <= > >=. Put a value with a comma in double quotes, as in JSON. Default: all failures. Example:
    /// `--where 'class=Bag,lpips>0.4'`.
    #[arg(long = "where", value_name = "CONDITIONS")]
    wheres: Vec<String>,
    /// Project the images with this seed instead of the run seed. Only with a seed are results redriven, too: they are deleted first.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    #[command(flatten)]
    connection: Connection,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    redrive(&args.connection.client(LONG)?, &args.run, &RedriveRequest { wheres: args.wheres, seed: args.seed })
}

/// Requests the redrive and prints the coordinator's note.
pub fn redrive(client: &Client, run: &str, request: &RedriveRequest) -> anyhow::Result<ExitCode> {
    say!("{}", client.redrive(run, request)?);
    Ok(ExitCode::SUCCESS)
}
