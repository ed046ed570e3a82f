//! Starts counters at 0. A counter that began with its first increment would hide that increment from alerts.

use broker::{INTAKE_HIGH, INTAKE_STD};
use domain::Channel;
use metrics::counter;
use runtime::{
    metric::{self, Service},
    telemetry::at_zero,
};
use submission::{AMQP, HTTP};
use web::problem::Code;

/// Starts each counter of ingest at 0, with each value of its labels.
pub fn start() {
    metric::start_at_zero(Service::Ingest);
    at_zero(metric::REQUESTS_REFUSED, "code", Code::ALL.iter().map(|code| code.as_str()));
    at_zero(metric::INTAKE_HELD, "queue", [INTAKE_HIGH, INTAKE_STD]);
    for channel in Channel::ALL {
        for source in [HTTP, AMQP] {
            counter!(metric::MESSAGES_ACCEPTED, "channel" => channel.as_str(), "source" => source).increment(0);
        }
    }
}
