//! `basin`: the person's command.

mod project;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use proto::Params;

/// Projects image data sets into class-conditional GANs.
///
/// The method of Huh et al., "Transforming and Projecting Images into Class-conditional Generative Networks" (ECCV 2020): for each
/// image it finds a transform, a latent vector and a class vector whose generated image is closest to the object in it.
#[derive(Parser)]
#[command(name = "basin", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Project the images of a data set.
    ///
    /// Run it again to go on where it stopped: finished images are left alone, unfinished ones resume. Ctrl-C once finishes the step,
    /// saves and leaves; twice leaves at once. Exit code: 0 all images have results; 2 some failed, see the list; 1 it could not run;
    /// 130 interrupted.
    Project(Box<project::Args>),
    /// Write the tables and the report of a run again.
    Report(report::Args),
    /// Print the parameters of a profile as JSON, to be changed and given to `project --params`.
    Params {
        /// Name of the profile.
        #[arg(value_parser = Params::PROFILES, default_value = "paper")]
        profile: String,
    },
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages.
    Man {
        /// Folder to write to.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            // The whole chain, once.
            eprintln!("basin: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Project(args) => runtime()?.block_on(project::run(*args)),
        Command::Report(args) => runtime()?.block_on(report::run(args)),
        Command::Params { profile } => {
            let params = Params::profile(&profile).expect("clap allows known names only");
            println!("{}", serde_json::to_string_pretty(&params).expect("plain structs serialise"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "basin", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => {
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            clap_mangen::generate_to(Args::command(), &dir)
                .with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start the I/O threads")
}
