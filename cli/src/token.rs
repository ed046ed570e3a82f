//! `posthaste token`: prints an access token for tests.

use std::{process::ExitCode, time::Duration};

use chrono::TimeDelta;
use domain::{
    clock,
    token::{self, Role},
};
use serde_json::json;

use crate::{moment::duration, output::Output, settings};

/// Print an access token (JWT), signed with JWT_SECRET
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  posthaste token --tenant acme --sub ada --role user
  posthaste token --tenant acme --sub night-shift --role operator --ttl 15m")]
pub struct Args {
    /// The tenant's name
    #[arg(long, value_name = "NAME")]
    tenant: String,
    /// The person or program; for a `user`, the user id
    #[arg(long)]
    sub: String,
    /// Its role: admin, producer, agent, user or operator (across tenants)
    #[arg(long)]
    role: Role,
    /// How long it holds: 90s, 15m, 1h, 7d
    #[arg(long, default_value = "1h", value_parser = duration)]
    ttl: Duration,
}

impl Args {
    /// Runs the command. It needs no database: an unknown tenant is noticed when the token is used.
    pub fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let token = token::encode(&settings::jwt_secret()?, &self.sub, &self.tenant, self.role, self.ttl)?;
        let expires_at = clock::now() + TimeDelta::from_std(self.ttl)?;
        out.print(&json!({ "token": token, "expires_at": expires_at }), |_| token.clone())?;
        Ok(ExitCode::SUCCESS)
    }
}
