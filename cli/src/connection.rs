//! The coordinator that a command talks to.

use std::path::PathBuf;
use std::time::Duration;

use client::{Client, ClientError};

/// Options of every command that talks to a coordinator.
#[derive(Clone, clap::Args)]
pub struct Connection {
    /// URL of the coordinator.
    #[arg(long, env = "BASIN_COORDINATOR_URL", value_name = "URL", default_value = "http://127.0.0.1:8470")]
    pub coordinator: String,
    /// File with the coordinator's token. Without it, BASIN_TOKEN holds the token itself.
    #[arg(long, env = "BASIN_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

impl Connection {
    /// `limit`: longest time for an answer.
    pub fn client(&self, limit: Duration) -> Result<Client, ClientError> {
        Ok(Client::new(&self.coordinator, client::token(self.token_file.as_deref())?, limit))
    }
}
