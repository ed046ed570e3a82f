//! Logs, metrics and the trace context that goes through every process.
//!
//! Logs go to stderr: readable lines on a terminal, JSON lines otherwise. Metrics are collected here and served
//! elsewhere. Spans are not exported; the trace context is only passed on.
//!
//! Every line goes through `mask`, panics included, so no log line shows an address or a number of a person.

mod mask;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::IsTerminal,
    panic::PanicHookInfo,
    sync::OnceLock,
    time::Duration,
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;
use tracing::{Event, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{
        self, FmtContext, FormatEvent, FormatFields,
        format::{Format, Json, JsonFields, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};
use uuid::Uuid;

use mask::Masking;
pub use mask::masked;

use crate::metric;

/// Upper bounds, in seconds, of the buckets of every `*_seconds` histogram: from a fast query to the longest call.
const SECONDS_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// How often histograms are drained into their buckets, as the exporter's own listener does.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// The longest `X-Request-Id`; a longer one would only fill logs and headers.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Starts logging for a process; `log` is in the syntax of `RUST_LOG`. Does nothing if logging is already set up.
pub fn init(service: &str, log: &str) {
    let filter = filter(log);
    let layer = if std::io::stderr().is_terminal() {
        fmt::layer().with_writer(Masking(std::io::stderr)).boxed()
    } else {
        json_layer(service, Masking(std::io::stderr)).boxed()
    };
    // It fails only if there is a subscriber: in tests, or when one process runs several services.
    if tracing_subscriber::registry().with(filter).with(layer).try_init().is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
}

/// Logs a panic like any other line: masked, and with its spans.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let (thread, location) = (std::thread::current(), panic.location().map(ToString::to_string));
    tracing::error!(panic = panic.payload_as_str(), location, thread = thread.name(), backtrace, "a thread panicked");
}

/// The log filter, without lines that show people: lapin logs returned messages with their bodies.
fn filter(log: &str) -> EnvFilter {
    let asked =
        EnvFilter::try_new(log).unwrap_or_else(|_| EnvFilter::default().add_directive(LevelFilter::INFO.into()));
    match "lapin::returned_messages=off".parse() {
        Ok(silence) => asked.add_directive(silence),
        Err(_) => asked,
    }
}

fn json_layer<S, W>(service: &str, writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = fmt::format().json().flatten_event(true).with_current_span(false).with_span_list(true);
    let head = format!("{{\"service\":{},", serde_json::Value::from(service));
    fmt::layer().fmt_fields(JsonFields::new()).event_format(Named { head, lines }).with_writer(writer)
}

/// JSON lines that begin with the name of the service.
struct Named {
    head: String,
    lines: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for Named
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&self.head)?;
        writer.write_str(line.strip_prefix('{').unwrap_or(&line))
    }
}

/// The metrics collected so far.
#[derive(Clone)]
pub struct MetricsHandle(PrometheusHandle);

impl std::fmt::Debug for MetricsHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MetricsHandle")
    }
}

/// Starts the metrics and describes each of them. A second call returns the same handle, so services of one process
/// share their metrics.
pub fn install_metrics() -> MetricsHandle {
    static INSTALLED: OnceLock<MetricsHandle> = OnceLock::new();
    INSTALLED.get_or_init(install).clone()
}

fn install() -> MetricsHandle {
    let plain = PrometheusBuilder::new;
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let builder = plain().set_buckets_for_metric(seconds, &SECONDS_BUCKETS).unwrap_or_else(|_| plain());
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("metrics are recorded elsewhere; /metrics will be empty");
    }
    metric::describe();
    metrics::gauge!(metric::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    MetricsHandle(handle)
}

impl MetricsHandle {
    /// The metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Drains the histograms; without this, memory grows between two scrapes.
    pub fn run_upkeep(&self) {
        self.0.run_upkeep();
    }

    /// Repeats the upkeep until `stop`.
    pub async fn keep_up(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(UPKEEP_EVERY)).await.is_some() {
            self.run_upkeep();
        }
    }
}

/// An error and its causes in one line, for the log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// Shows a counter at 0 for each value of its label: a series that begins with its first increment hides that increment
/// from `rate` and `increase`. Call it once the recorder is installed. Counters whose labels the table knows start by
/// [`metric::start_at_zero`].
pub fn at_zero(name: &'static str, label: &'static str, values: impl IntoIterator<Item = &'static str>) {
    for value in values {
        metrics::counter!(name, label => value).increment(0);
    }
}

/// The origin of a piece of work: the caller's request id and W3C trace context. Both are taken from the caller or
/// made, and go through the broker into logs and outbound calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// `X-Request-Id`.
    pub request_id: String,
    /// `traceparent`, version 00.
    pub traceparent: String,
}

impl TraceContext {
    /// Takes the valid parts of the caller's values and makes the rest.
    pub fn take_or_make(request_id: Option<&str>, traceparent: Option<&str>) -> Self {
        let request_id =
            request_id.filter(|id| is_request_id(id)).map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
        let traceparent = traceparent.and_then(Parent::parse).map_or_else(Parent::made, |parent| parent.to_string());
        Self { request_id, traceparent }
    }

    /// The 32 hexadecimal digits that every span of the trace shares.
    pub fn trace_id(&self) -> &str {
        Parent::parse(&self.traceparent).map(|parent| parent.trace_id).unwrap_or_default()
    }

    /// The context for a call on behalf of this one: the same trace and request, another span.
    pub fn child(&self) -> Self {
        let span_id = span_id();
        let made = Parent::parse(&self.traceparent).map(|parent| Parent { span_id: &span_id, ..parent }.to_string());
        Self { request_id: self.request_id.clone(), traceparent: made.unwrap_or_else(Parent::made) }
    }
}

fn is_request_id(text: &str) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The parts of a `traceparent`.
#[derive(Clone, Copy)]
struct Parent<'a> {
    trace_id: &'a str,
    span_id: &'a str,
    flags: &'a str,
}

impl<'a> Parent<'a> {
    /// Reads version 00. Of a later version it reads the parts that 00 has, as the W3C requires.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let sizes = [(version, 2), (trace_id, 32), (span_id, 16), (flags, 2)];
        let shaped = sizes.iter().all(|(part, size)| part.len() == *size && part.bytes().all(is_lower_hex));
        let ended = version != "00" || parts.next().is_none();
        let named = version != "ff" && !is_zero(trace_id) && !is_zero(span_id);
        (shaped && ended && named).then_some(Self { trace_id, span_id, flags })
    }

    /// A new trace, marked as sampled so that receivers which respect the mark keep their part of it.
    fn made() -> String {
        Parent { trace_id: &trace_id(), span_id: &span_id(), flags: "01" }.to_string()
    }
}

impl std::fmt::Display for Parent<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "00-{}-{}-{}", self.trace_id, self.span_id, self.flags)
    }
}

const fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn is_zero(hex: &str) -> bool {
    hex.bytes().all(|byte| byte == b'0')
}

fn trace_id() -> String {
    format!("{:032x}", u128::from_be_bytes(random()))
}

fn span_id() -> String {
    format!("{:016x}", u64::from_be_bytes(random()))
}

/// Random bytes, never all zero. If the system has none, the tail of a UUIDv7 is enough for a name.
fn random<const SIZE: usize>() -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() || bytes == [0; SIZE] {
        bytes
            .iter_mut()
            .rev()
            .zip(Uuid::now_v7().into_bytes().into_iter().rev())
            .for_each(|(byte, spare)| *byte = spare);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_context_is_taken_as_it_is() {
        let context = TraceContext::take_or_make(Some("req-1"), Some(GIVEN));
        assert_eq!((context.request_id.as_str(), context.traceparent.as_str()), ("req-1", GIVEN));
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn an_invalid_trace_is_replaced() {
        for bad in [
            "",
            "00",
            "garbage",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
        ] {
            let made = TraceContext::take_or_make(None, Some(bad));
            assert_ne!(made.traceparent, bad);
            assert!(Parent::parse(&made.traceparent).is_some(), "{made:?}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_the_one_we_know() {
        let later = TraceContext::take_or_make(
            None,
            Some("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes"),
        );
        assert_eq!(later.traceparent, GIVEN);
    }

    #[test]
    fn a_request_id_is_visible_ascii_of_bounded_length() {
        let long = "x".repeat(REQUEST_ID_BYTES_MAX + 1);
        for bad in ["", "a b", "é", "a\nb", &long] {
            assert_ne!(TraceContext::take_or_make(Some(bad), None).request_id, bad);
        }
        let longest = "x".repeat(REQUEST_ID_BYTES_MAX);
        assert_eq!(TraceContext::take_or_make(Some(&longest), None).request_id, longest);
    }

    #[test]
    fn a_child_keeps_trace_and_request_and_has_its_own_span() {
        let parent = TraceContext::take_or_make(None, Some(GIVEN));
        let child = parent.child();
        assert_eq!((child.trace_id(), &child.request_id), (parent.trace_id(), &parent.request_id));
        assert_ne!(child.traceparent, parent.traceparent);
    }

    #[test]
    fn no_two_made_contexts_are_alike() {
        let (one, other) = (TraceContext::take_or_make(None, None), TraceContext::take_or_make(None, None));
        assert_ne!(one.trace_id(), other.trace_id());
        assert_ne!(one.request_id, other.request_id);
    }

    #[test]
    fn metrics_come_with_the_build_and_buckets_for_seconds() {
        let handle = install_metrics();
        metrics::histogram!("telemetry_test_seconds").record(0.003);
        handle.run_upkeep();
        let text = install_metrics().render();
        assert!(
            text.contains(concat!("posthaste_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")),
            "{text}"
        );
        assert!(text.contains("telemetry_test_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("telemetry_test_seconds_bucket{le=\"60\"} 1"), "{text}");
    }

    #[test]
    fn a_counter_stands_at_zero_for_each_value_and_keeps_what_it_counted() {
        let handle = install_metrics();
        metrics::counter!("telemetry_test_total", "end" => "good").increment(2);
        at_zero("telemetry_test_total", "end", ["good", "bad"]);
        let text = handle.render();
        assert!(text.contains("telemetry_test_total{end=\"good\"} 2"), "{text}");
        assert!(text.contains("telemetry_test_total{end=\"bad\"} 0"), "{text}");
    }

    #[test]
    fn the_counters_of_a_service_stand_at_zero_with_their_help() {
        let metrics = install_metrics();
        metric::start_at_zero(metric::Service::Worker);
        metric::start_at_zero(metric::Service::Ingest);
        let text = metrics.render();
        for line in [
            "# HELP posthaste_late_slots_total Slots of WhatsApp sessions whose call ended late. Their minute counts from that end.",
            "posthaste_claims_total{result=\"early\"} 0",
            "posthaste_late_slots_total 0",
            "posthaste_provider_events_total{provider=\"ses\",duplicate=\"true\"} 0",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains(metric::RELEASED), "{text}");
    }

    #[test]
    fn setting_up_logs_twice_does_no_harm() {
        init("test", "warn");
        init("test", "not a filter =");
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_a_masked_log_line() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry().with(json_layer("test", Masking(move || writer.clone())));
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(log_panic));
        let ended = tracing::subscriber::with_default(subscriber, || {
            std::panic::catch_unwind(|| panic!("no mailbox of ada@example.com at +491701234567"))
        });
        std::panic::set_hook(usual);
        assert!(ended.is_err());
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["panic"], "no mailbox of ***@*** at +***");
        assert!(line["location"].as_str().unwrap().contains("telemetry.rs"), "{text}");
    }

    #[test]
    fn a_log_line_is_one_json_object_with_service_fields_and_spans() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry().with(json_layer("in\"gest", move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("delivery", channel = "sms").entered();
            tracing::info!(duration_ms = 12, "attempt made");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["service"], &line["message"], &line["duration_ms"]),
            (&"in\"gest".into(), &"attempt made".into(), &12.into())
        );
        assert_eq!(line["spans"][0]["channel"], "sms");
    }
}
