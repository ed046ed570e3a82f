//! Which process sent which message. Repeats are classed by whether the process that sent first had a fault of its own.

use std::{collections::HashMap, net::IpAddr, time::Instant};

use testkit::HttpSink;

/// A process that died, stood still or was cut off.
#[derive(Clone, Copy, Debug)]
pub struct SenderFault {
    /// Where it sends from.
    pub node: IpAddr,
    /// When the fault began.
    pub from: Instant,
    /// When it was over.
    pub until: Instant,
}

/// Repeated requests whose sender before them had no fault between its request and the repeat: a healthy process's finished
/// work that went out again. Must be 0.
pub fn repeats_without_a_fault(sink: &HttpSink, faults: &[SenderFault]) -> usize {
    let mut sent: HashMap<String, Vec<(Instant, IpAddr)>> = HashMap::new();
    for request in sink.requests() {
        let id = request.header("webhook-id").unwrap_or("none").to_owned();
        sent.entry(id).or_default().push((request.received_at, request.peer.ip()));
    }
    let pairs = sent.values().flat_map(|times| times.windows(2));
    pairs.filter(|pair| matches!(pair, [(at, by), (again, _)] if !had_fault(faults, *by, *at, *again))).count()
}

fn had_fault(faults: &[SenderFault], node: IpAddr, from: Instant, until: Instant) -> bool {
    faults.iter().any(|fault| fault.node == node && fault.from <= until && from <= fault.until)
}
