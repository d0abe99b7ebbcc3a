//! `basin`: the command line.

/// Prints a line on standard output. A closed pipe is not an error.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// Prints a line on standard error, beside the results.
macro_rules! note {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod capacity;
mod connection;
mod delete;
mod edit;
mod finished;
mod local;
mod models;
mod plan;
mod project;
mod push;
mod reference;
mod run_options;
mod runs;
mod serve_edits;
mod simulate;
mod stores;
mod study;
mod terminal;
mod wait;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use proto::Params;

/// Project image data sets into class-conditional GANs.
///
/// Implements Huh et al., "Transforming and Projecting Images into Class-conditional Generative Networks" (ECCV 2020): for each image
/// it finds the transform, latent vector and class vector whose generated image is closest to the object in the image.
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
    /// Run the same command again to resume an interrupted run: finished images are not projected again. Ctrl-C once finishes the
    /// current step, saves and exits; twice exits at once. Exit code: 0 all images have results; 2 some images failed, see the list;
    /// 1 the run could not start or continue; 130 interrupted. Example: `basin project photos --model models/fashion32 --out out`.
    Project(Box<project::ProjectArgs>),
    /// Write the tables and the report of a run again, from its results.
    Report(finished::ReportArgs),
    /// Edit a projected image: change its class, shift or zoom it, and blend it back into the original.
    Edit(Box<edit::EditArgs>),
    /// Serve edits over HTTP for the dashboard and other programs.
    ServeEdits(serve_edits::ServeEditsArgs),
    /// Submit a run to a fleet.
    Submit(runs::SubmitArgs),
    /// Show and control the runs of a fleet.
    Runs(runs::RunsArgs),
    /// Watch a fleet or a run in the terminal.
    ///
    /// Exit code: 0 after `q`, 130 after Ctrl-C. Without a terminal: 2 if images failed, as `basin runs wait`.
    Watch(watch::WatchArgs),
    /// Redrive images of a finished run: project failures again, or any selected images with another seed.
    Redrive(runs::RedriveArgs),
    /// Show the workers of a fleet.
    Workers(connection::Connection),
    /// Copy a model folder to a fleet's home.
    Push(push::PushArgs),
    /// Copy a run, or any other objects, from one store to another.
    Copy(stores::CopyArgs),
    /// Export the results of a run as files that training programs read.
    ///
    /// Writes a WebDataset: tar files, and manifest.json with the size and SHA-256 of each. The same run gives the same bytes.
    Export(finished::ExportArgs),
    /// Verify that a run is complete: every image has one result or one failure, and no object is damaged.
    ///
    /// Exit code: 0 the run is complete; 2 it is not, see the list.
    Verify(finished::VerifyArgs),
    /// Measure the coordinator's work for a run of any size, with simulated workers.
    Simulate(simulate::SimulateArgs),
    /// Check that a store does what a fleet needs: permissions, listing, and that exactly one concurrent create or replacement succeeds.
    ///
    /// Exit code: 0 the store is fit for a fleet; 2 it is not, see the list.
    Doctor(stores::DoctorArgs),
    /// Estimate a run's time, cost and storage, or the number of workers for a deadline, from measured speed.
    Plan(Box<plan::PlanArgs>),
    /// Repeat the paper's experiments on a data set: project each row of a table as a run, and write the table.
    ///
    /// Run the same command again to resume: finished rows are not projected again. Exit code: as `basin project`'s.
    Study(Box<study::StudyArgs>),
    /// Fetch, convert, verify and calibrate models.
    Models(models::ModelsArgs),
    /// Print the parameters of a profile as JSON; change them and pass the file to `basin project --params`.
    Params {
        /// Name of the profile.
        #[arg(value_parser = Params::PROFILES, default_value = Params::DEFAULT_PROFILE)]
        profile: String,
    },
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages to a folder.
    Man {
        /// Folder to write to.
        dir: PathBuf,
    },
    /// Write the pages of the documentation that follow from the code.
    #[command(hide = true)]
    Reference {
        /// Folder to write to.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let _telemetry = telemetry::init("basin", "warn");
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            note!("basin: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Project(args) => runtime()?.block_on(project::run(*args)),
        Command::Report(args) => runtime()?.block_on(finished::report(args)),
        Command::Edit(args) => runtime()?.block_on(edit::run(*args)),
        Command::ServeEdits(args) => runtime()?.block_on(serve_edits::run(args)),
        Command::Submit(args) => runs::submit(args),
        Command::Runs(args) => runs::run(args),
        Command::Watch(args) => watch::run(args),
        Command::Redrive(args) => runs::redrive(args),
        Command::Workers(args) => runs::workers(&args),
        Command::Push(args) => runtime()?.block_on(push::run(args)),
        Command::Copy(args) => runtime()?.block_on(stores::copy(args)),
        Command::Export(args) => runtime()?.block_on(finished::export(args)),
        Command::Verify(args) => runtime()?.block_on(finished::verify(args)),
        Command::Simulate(args) => simulate::run(&args),
        Command::Doctor(args) => runtime()?.block_on(stores::doctor(args)),
        Command::Study(args) => runtime()?.block_on(study::run(*args)),
        Command::Models(args) => models::run(args),
        Command::Plan(args) => runtime()?.block_on(plan::run(*args)),
        Command::Params { profile } => {
            let params = Params::profile(&profile).expect("clap allows known names only");
            say!("{}", serde_json::to_string_pretty(&params).expect("plain structs serialise"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "basin", &mut text);
            let _ = std::io::Write::write_all(&mut std::io::stdout(), &text);
            Ok(ExitCode::SUCCESS)
        }
        Command::Reference { dir } => {
            reference::write(&Args::command(), &dir)?;
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
