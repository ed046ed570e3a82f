//! The number of messages ready in work queues. A process asks over one channel that stays open, and only about the
//! queues that a caller names. Callers share answers that are recent enough.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::Route;
use lapin::Channel;
use tokio::{sync::Mutex, time::timeout};

use super::{
    Broker,
    declare::{is_missing, ready_on},
    work_queue,
};

/// A healthy broker answers for all queues within a few milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Messages ready, by route. A queue that does not exist is left out.
pub type Ready = HashMap<Route, u32>;

/// Asks for depths and caches them. Cheap to clone; clones share the channel and the cache.
#[derive(Clone)]
pub struct Depths {
    broker: Broker,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    channel: Option<Channel>,
    known: HashMap<Route, (Instant, u32)>,
}

impl Depths {
    /// Uses `broker`; the channel is opened with the first request.
    pub fn new(broker: Broker) -> Self {
        Self { broker, state: Arc::default() }
    }

    /// The messages ready for each of `routes`, at most `age_max` old; `None` if the broker does not answer.
    pub async fn ready(&self, routes: &[Route], age_max: Duration) -> Option<Ready> {
        timeout(ANSWER_TIMEOUT, self.answer(routes, age_max)).await.ok().flatten()
    }

    async fn answer(&self, routes: &[Route], age_max: Duration) -> Option<Ready> {
        let mut state = self.state.lock().await;
        let is_old = |route: &&Route| state.known.get(route).is_none_or(|(at, _)| at.elapsed() >= age_max);
        let old: Vec<Route> = routes.iter().filter(is_old).copied().collect();
        if !old.is_empty() {
            // Stored again only after all answers arrived, so a failed channel is not reused.
            let channel = state.channel.take().filter(|channel| channel.status().connected());
            let channel = self.ask(channel, &old, &mut state.known).await?;
            state.channel = Some(channel);
        }
        Some(routes.iter().filter_map(|route| Some((*route, state.known.get(route)?.1))).collect())
    }

    async fn ask(
        &self,
        channel: Option<Channel>,
        routes: &[Route],
        known: &mut HashMap<Route, (Instant, u32)>,
    ) -> Option<Channel> {
        let connection = self.broker.connection()?;
        let mut channel = match channel {
            Some(channel) => channel,
            None => connection.create_channel().await.ok()?,
        };
        for route in routes {
            match ready_on(&channel, &work_queue(*route)).await {
                Ok(count) => drop(known.insert(*route, (Instant::now(), count))),
                // The broker closes the channel with this error.
                Err(error) if is_missing(&error) => {
                    known.remove(route);
                    channel = connection.create_channel().await.ok()?;
                }
                Err(_) => return None,
            }
        }
        Some(channel)
    }
}
