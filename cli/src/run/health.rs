//! A whole service as one part of the process's health, so that parts of two services may have the same name.

use runtime::probe::{Checking, Health, Part, Parts, Report, Status};

/// A service. Its health is that of its worst part.
pub struct ServicePart {
    name: &'static str,
    parts: Parts,
}

impl ServicePart {
    /// Adds a service to the health of the process. Returns the list for the service's own parts.
    pub fn add_to(process: &Parts, name: &'static str) -> Parts {
        let parts = Parts::new();
        process.add(Self { name, parts: parts.clone() });
        parts
    }
}

impl Part for ServicePart {
    fn name(&self) -> &'static str {
        self.name
    }

    fn check(&self) -> Checking<'_> {
        Box::pin(async { summary(&self.parts.report().await) })
    }
}

fn summary(report: &Report) -> Health {
    let troubles = report.parts.iter().filter_map(|(name, part)| Some(format!("{name}: {}", part.detail.as_ref()?)));
    let troubles = troubles.collect::<Vec<_>>().join("; ");
    match report.status {
        Status::Ok => Health::Up,
        Status::Degraded => Health::Degraded(troubles),
        Status::Down => Health::Down(troubles),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(&'static str, Health);

    impl Part for Fixed {
        fn name(&self) -> &'static str {
            self.0
        }

        fn check(&self) -> Checking<'_> {
            Box::pin(std::future::ready(self.1.clone()))
        }
    }

    #[tokio::test]
    async fn services_do_not_hide_each_others_parts() {
        let process = Parts::new();
        let worker = ServicePart::add_to(&process, "worker");
        let scheduler = ServicePart::add_to(&process, "scheduler");
        worker.add(Fixed("consumers", Health::Down("not consuming a".to_owned())));
        worker.add(Fixed("broker", Health::Degraded("blocked".to_owned())));
        scheduler.add(Fixed("consumers", Health::Up));
        let report = process.report().await;
        assert_eq!(report.parts["worker"].detail.as_deref(), Some("broker: blocked; consumers: not consuming a"));
        assert_eq!((report.parts["worker"].status, report.parts["scheduler"].status), (Status::Down, Status::Ok));
    }
}
