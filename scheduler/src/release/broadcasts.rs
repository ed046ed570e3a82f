//! Sends broadcasts page by page, and counts the states of their deliveries.
//!
//! Each page is one commit together with its cursor, so a scheduler that dies in the middle of a broadcast leaves
//! nothing to clean up. Paging stays only a little ahead of the release: the audience is stored already, and its
//! deliveries are not needed earlier.

use std::time::Duration;

use content::template;
use deliveries::{
    Deliveries,
    broadcasts::{OpenBroadcast, PageDone},
    poll::WorkKind,
};
use engine::dispatch::Dispatcher;
use metrics::counter;
use records::catalogue::Catalogues;
use runtime::metric;
use store::Store;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::{
    failure_streak::chain,
    task::{Report, Task, TaskError, count_of},
};

/// Broadcasts that get a page in one turn.
const BROADCASTS_MAX: i64 = 16;
/// Deliveries of one broadcast's kind that may wait for release: half a second's work at the fastest release rate.
const AHEAD_MAX: i64 = 10_000;
/// The pause before a broadcast that is far enough ahead is checked again.
const AHEAD_PAUSE: Duration = Duration::from_millis(50);
/// Pages counted in one turn.
const PAGES_MAX: i64 = 50;

/// The task that sends broadcasts.
pub struct Broadcasts {
    store: Store,
    dispatcher: Dispatcher,
    catalogues: Catalogues,
    relay_after_ms: i32,
    /// The last broadcast that had a turn. If there are more than fit into a turn, the next turn starts after it.
    after: Uuid,
}

/// The result of one broadcast in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is finished, or another scheduler holds it.
    Idle,
    /// Enough of its deliveries wait for release.
    Ahead,
    /// More recipients may follow.
    More,
}

impl Broadcasts {
    /// Accepts deliveries in `store`, and publishes with `dispatcher` those that are due at once.
    pub fn new(store: Store, dispatcher: Dispatcher, relay_after_ms: i32) -> Self {
        Self { catalogues: Catalogues::new(store.clone()), store, dispatcher, relay_after_ms, after: Uuid::nil() }
    }

    async fn advance(&self, broadcast: &OpenBroadcast) -> Result<Step, TaskError> {
        if self.store.broadcasts().ahead_of(broadcast).await? >= AHEAD_MAX {
            return Ok(Step::Ahead);
        }
        let mut catalogue = self.catalogues.get(broadcast.tenant).await?;
        if catalogue.version < broadcast.definition.catalogue_version {
            self.catalogues.forget(broadcast.tenant);
            catalogue = self.catalogues.get(broadcast.tenant).await?;
        }
        let Some(mut page) = self.store.broadcasts().next_page(broadcast).await? else { return Ok(Step::Idle) };
        let (people, definition) = (std::mem::take(&mut page.people), broadcast.definition.clone());
        // Rendering takes time: it runs on a blocking thread, and while no row is locked.
        let composing = move || (definition.messages(&catalogue, &people, template::deadline()), people);
        let (messages, people) = spawn_blocking(composing).await.map_err(|_| TaskError::Broadcasts(1))?;
        page.people = people;
        let done = self.store.broadcasts().tell_page(broadcast, page, messages, self.relay_after_ms).await?;
        let PageDone { told, more, dispatch } = done;
        dispatch.into_iter().for_each(|dispatch| self.dispatcher.post(dispatch));
        counter!(metric::BROADCAST_PEOPLE).increment(count_of(told));
        Ok(if more { Step::More } else { Step::Idle })
    }

    /// The next broadcasts, in round-robin order.
    async fn next(&mut self) -> Result<Vec<OpenBroadcast>, TaskError> {
        let mut running = self.store.broadcasts().running(self.after, BROADCASTS_MAX).await?;
        if running.is_empty() && !self.after.is_nil() {
            running = self.store.broadcasts().running(Uuid::nil(), BROADCASTS_MAX).await?;
        }
        let is_full = i64::try_from(running.len()).is_ok_and(|count| count >= BROADCASTS_MAX);
        self.after = running.last().filter(|_| is_full).map_or(Uuid::nil(), |last| last.id);
        Ok(running)
    }
}

impl Task for Broadcasts {
    const NAME: &'static str = "broadcasts";
    const PERIOD: Duration = Duration::from_millis(250);
    const WORK: Option<WorkKind> = Some(WorkKind::Broadcasts);

    async fn run(&mut self) -> Result<Report, TaskError> {
        self.store.broadcasts().begin().await?;
        let running = self.next().await?;
        let (mut steps, mut failed) = (Vec::with_capacity(running.len()), 0);
        for broadcast in &running {
            match self.advance(broadcast).await {
                Ok(step) => steps.push(step),
                Err(error) => {
                    // A broadcast that fails must not hold up the others.
                    tracing::warn!(broadcast = %broadcast.id, error = chain(&error), "a broadcast could not go on");
                    failed += 1;
                }
            }
        }
        match failed {
            0 if steps.contains(&Step::More) => Ok(Report::More),
            0 if steps.contains(&Step::Ahead) || !self.after.is_nil() => Ok(Report::Expect(AHEAD_PAUSE)),
            0 => Ok(Report::Done),
            _ => Err(TaskError::Broadcasts(failed)),
        }
    }
}

/// The task that counts the audiences of broadcasts. It is separate from the task that accepts their messages: counting
/// ten million people takes minutes, and no message needs the number.
pub struct BroadcastAudiences(pub Store);

impl Task for BroadcastAudiences {
    const NAME: &'static str = "broadcast_audiences";
    const PERIOD: Duration = Duration::from_secs(1);
    const WORK: Option<WorkKind> = Some(WorkKind::Broadcasts);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let (mut after, mut failed) = (Uuid::nil(), 0);
        loop {
            let running = self.0.broadcasts().running(after, BROADCASTS_MAX).await?;
            for broadcast in running.iter().filter(|broadcast| !broadcast.is_counted) {
                if let Err(error) = self.0.broadcasts().count_audience(broadcast).await {
                    tracing::warn!(broadcast = %broadcast.id, error = chain(&error), "the people of a broadcast could not be counted");
                    failed += 1;
                }
            }
            match running.last() {
                Some(last) => after = last.id,
                None if failed > 0 => return Err(TaskError::Broadcasts(failed)),
                None => return Ok(Report::Done),
            }
        }
    }
}

/// The task that counts delivery states, and cancels the waiting deliveries of cancelled broadcasts.
pub struct BroadcastCounts(pub Store);

impl Task for BroadcastCounts {
    const NAME: &'static str = "broadcast_counts";
    const PERIOD: Duration = Duration::from_millis(500);
    const WORK: Option<WorkKind> = Some(WorkKind::BroadcastPages);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let pages = self.0.broadcasts().due_pages(PAGES_MAX).await?;
        for page in &pages {
            self.0.broadcasts().count_page(page).await?;
        }
        let is_full = i64::try_from(pages.len()).is_ok_and(|count| count >= PAGES_MAX);
        Ok(if is_full { Report::More } else { Report::Done })
    }
}
