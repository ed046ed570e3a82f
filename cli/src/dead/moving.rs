//! Replays and drops dead letters: the command stores the request, the scheduler executes it, and the command watches.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use deliveries::{
    Deliveries,
    letters::{LetterAction, LetterFilter, Replay},
};
use serde_json::json;
use store::Store;
use uuid::Uuid;

use super::{
    filter::{Filter, OPTIONS},
    progress_line,
};
use crate::{
    output::{Output, count},
    progress, settings,
};

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The scheduler takes a replay within a second or two. A longer wait means that no scheduler runs.
const QUIET_MAX: Duration = Duration::from_secs(10);
const RUNNING: &str = "running";

/// Which letters, and why.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// These letters, by the ids that `dead list` shows
    #[arg(value_name = "ID", required_unless_present_any = OPTIONS.into_iter().chain(["all"]))]
    ids: Vec<Uuid>,
    #[command(flatten)]
    filter: Filter,
    /// Every open letter of every tenant
    #[arg(long, conflicts_with_all = OPTIONS.into_iter().chain(["ids"]))]
    all: bool,
    /// Also replay letters that were refused because their publisher may not publish for the tenant (reason tenant); they are checked again
    #[arg(long)]
    despite_tenant: bool,
    /// Why: kept with the replay for later readers
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    note: Option<String>,
    /// Change nothing; say how many letters it would be
    #[arg(long)]
    dry_run: bool,
    /// The most letters a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    rate: Option<i32>,
    /// Do not wait for the end; `posthaste dead status` shows it
    #[arg(long)]
    no_wait: bool,
}

impl Args {
    /// Runs the command.
    pub async fn run(self, action: LetterAction, out: Output) -> anyhow::Result<ExitCode> {
        let store = settings::store()?;
        let (note, rate, wait) = (self.note.unwrap_or_default(), self.rate, !self.no_wait);
        let ids = Some(self.ids).filter(|ids| !ids.is_empty());
        let tenant = settings::tenant_id(&store, self.filter.tenant()).await?;
        let letters = self.filter.letters(&store).await?;
        let filter = LetterFilter { ids, all: self.all, despite_tenant: self.despite_tenant, ..letters };
        if action == LetterAction::Replay && !filter.despite_tenant {
            note_left_out(&store, &filter, out).await?;
        }
        if self.dry_run {
            return preview(&store, &filter, action, out).await;
        }
        let begun = store.replays().start(None, action, &filter, rate, &note, &settings::actor()).await;
        let (id, matched) = begun.with_context(|| format!("failed to begin the {}", action.as_str()))?;
        settings::record(&store, &format!("dead {}", action.as_str()), id, tenant).await?;
        if wait { watch(&store, id, out).await } else { leave(id, matched, out) }
    }
}

/// Prints how many letters a replay leaves out because of their publisher.
async fn note_left_out(store: &Store, filter: &LetterFilter, out: Output) -> anyhow::Result<()> {
    let [all, taken] = [LetterAction::Drop, LetterAction::Replay];
    let all =
        store.dead_letters().letters_match(None, filter, all).await.context("failed to count the dead letters")?;
    let taken =
        store.dead_letters().letters_match(None, filter, taken).await.context("failed to count the dead letters")?;
    if all > taken {
        let left = count(all - taken, "letter");
        out.note(&format!("{left} of reason tenant stay where they are; --despite-tenant takes them along"));
    }
    Ok(())
}

async fn preview(store: &Store, filter: &LetterFilter, action: LetterAction, out: Output) -> anyhow::Result<ExitCode> {
    let matched =
        store.dead_letters().letters_match(None, filter, action).await.context("failed to count the dead letters")?;
    out.print(&json!({ "matched": matched }), |_| {
        format!("{} would be taken by this {}; nothing was changed", count(matched, "open letter"), action.as_str())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn leave(id: Uuid, matched: i64, out: Output) -> anyhow::Result<ExitCode> {
    out.print(&json!({ "replay_id": id, "matched": matched, "status": RUNNING }), |_| {
        format!("{id} began with {}; see how far it is: posthaste dead status {id}", count(matched, "letter"))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Watches a replay until it ends. Interrupting the command stops only the watching, not the replay.
async fn watch(store: &Store, id: Uuid, out: Output) -> anyhow::Result<ExitCode> {
    let followed = tokio::select! {
        followed = follow(store, id) => followed?,
        _ = tokio::signal::ctrl_c() => {
            bail!("{id} goes on without you: see `posthaste dead status {id}`, or stop it with `posthaste dead cancel {id}`")
        }
    };
    out.print(&followed, progress_line)?;
    Ok(if followed.status == RUNNING { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn follow(store: &Store, id: Uuid) -> anyhow::Result<Replay> {
    let bar = progress::bar(0, "moving letters");
    let mut moved = (Instant::now(), -1);
    loop {
        let found = store.replays().replay(None, id).await.context("failed to see how far it is")?;
        let replay = found.with_context(|| format!("{id} has vanished"))?;
        bar.set_length(u64::try_from(replay.matched).unwrap_or_default());
        bar.set_position(u64::try_from(replay.replayed).unwrap_or_default());
        if replay.status != RUNNING {
            bar.finish_and_clear();
            return Ok(replay);
        }
        if moved.1 != replay.replayed {
            moved = (Instant::now(), replay.replayed);
        } else if moved.0.elapsed() > QUIET_MAX {
            bar.finish_and_clear();
            bail!(stuck(&replay));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn stuck(replay: &Replay) -> String {
    format!(
        "nothing has moved for {} s ({} of {}): the scheduler does it, so start one with `posthaste run --only scheduler`; \
         the work is written down and goes on by itself (see `posthaste dead status {}`)",
        QUIET_MAX.as_secs(),
        replay.replayed,
        replay.matched,
        replay.id
    )
}
