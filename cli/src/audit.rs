//! `posthaste audit`: checks that the audit log is complete and unchanged.

use std::{process::ExitCode, str::FromStr};

use anyhow::Context;
use clap::{Args, Subcommand};
use records::{Records, audit::Link};
use serde_json::json;
use store::Store;

use crate::{output::Output, progress, settings};

/// Entries read at once: some megabytes.
const BATCH: i64 = 5000;

/// Check the audit log
#[derive(Debug, Subcommand)]
pub enum Command {
    Verify(Verify),
}

/// Walk the audit log from its first entry; exits with 1 and names the first entry that is not as it was written
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  posthaste audit verify
  posthaste audit verify --json
  posthaste audit verify --anchor 1042:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

A log that was rewritten as a whole, or cut off together with its head, passes this check. An attacker who can do that cannot
change your own notes: keep the printed anchor, and give it to the next check.")]
pub struct Verify {
    /// An end of the log that an earlier check printed; its entry must still be the same
    #[arg(long, value_name = "ID:HASH")]
    anchor: Option<Anchor>,
}

/// An entry and its hash, from an earlier check.
#[derive(Clone, Debug)]
struct Anchor {
    id: i64,
    hash: String,
}

impl FromStr for Anchor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once(':').and_then(|(id, hash)| Some((id.parse().ok()?, hash)));
        let shaped = |(_, hash): &(i64, &str)| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (id, hash) = parts.filter(shaped).ok_or("must be ID:HASH as `audit verify` printed it")?;
        Ok(Self { id, hash: hash.to_ascii_lowercase() })
    }
}

impl Command {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Verify(args) => args.run(out).await,
        }
    }
}

/// The result of checking the hash chain.
enum ChainCheck {
    /// Every entry is unchanged.
    Whole(Link),
    /// The first wrong entry, and why.
    Broken(i64, &'static str),
}

impl Verify {
    async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let store = settings::store()?;
        match walk(&store, self.anchor.as_ref()).await.context("failed to read the audit log")? {
            ChainCheck::Whole(Link { id, hash }) => {
                let anchor = format!("{id}:{}", hex(&hash));
                out.print(&json!({ "holds": true, "entries": id, "anchor": anchor }), |_| {
                    let held = if id == 1 { "1 entry holds".to_owned() } else { format!("{id} entries hold") };
                    format!("{held}\nanchor: {anchor}")
                })?;
                Ok(ExitCode::SUCCESS)
            }
            ChainCheck::Broken(id, why) => {
                let holding = id - 1;
                out.print(&json!({ "holds": false, "entries": holding, "broken": id, "reason": why }), |_| {
                    format!("entry {id} is broken: {why}; the {holding} before it hold")
                })?;
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

async fn walk(store: &Store, anchor: Option<&Anchor>) -> anyhow::Result<ChainCheck> {
    // Read first, because new entries are added after it meanwhile.
    let head = store.audit_log().head().await?;
    let bar = progress::bar(u64::try_from(head.id).unwrap_or_default(), "checking entries");
    let found = follow(store, &head, anchor, |id| bar.set_position(u64::try_from(id).unwrap_or_default())).await;
    bar.finish_and_clear();
    found
}

async fn follow(store: &Store, head: &Link, anchor: Option<&Anchor>, seen: impl Fn(i64)) -> anyhow::Result<ChainCheck> {
    let mut last = Link::origin();
    loop {
        let batch = store.audit_log().chain(last.id, BATCH).await?;
        if batch.is_empty() {
            break;
        }
        for entry in batch {
            let Some(link) = entry.follow(&last) else { return Ok(broken(&last, entry.id())) };
            if anchor.is_some_and(|anchor| anchor.id == link.id && anchor.hash != hex(&link.hash)) {
                return Ok(ChainCheck::Broken(link.id, "it is not the one that the anchor names"));
            }
            if head.id == link.id && head.hash != link.hash {
                return Ok(ChainCheck::Broken(link.id, "it is not the one that was written last"));
            }
            last = link;
        }
        seen(last.id);
    }
    let end = anchor.map_or(head.id, |anchor| anchor.id.max(head.id));
    Ok(if last.id < end { broken(&last, i64::MAX) } else { ChainCheck::Whole(last) })
}

/// The fault of entry number `found` behind the entry `last`.
fn broken(last: &Link, found: i64) -> ChainCheck {
    let id = last.id + 1;
    ChainCheck::Broken(id, if found == id { "it is not as it was written" } else { "it is missing" })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
