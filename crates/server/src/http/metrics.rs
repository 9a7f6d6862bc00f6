//! `/metrics`: what the node and this front-end have counted, for Prometheus.
//!
//! Labels are bounded: routes and methods are words of ours, never a client's; keys, clients and
//! epochs are never labels.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Shared, reply};
use crate::database::{Database, Reading};

/// The route of a path, as a label: one of these words whatever a client asks for.
pub(super) fn route_label(path: &str) -> &'static str {
    const EXACT: &[&str] = &[
        "/v1/scan",
        "/v1/list",
        "/v1/status",
        "/v1/ring",
        "/v1/members",
        "/v1/config",
        "/v1/digest",
        "/v1/epochs",
        "/v1/verify",
        "/v1/init",
        "/v1/transition",
        "/set",
        "/get",
        "/health",
        "/ready",
        "/metrics",
        "/debug/pprof/profile",
    ];
    if path.starts_with("/v1/kv/") {
        return "/v1/kv";
    }
    let known = EXACT.iter().find(|&&exact| exact == path);
    known.copied().unwrap_or("other")
}

/// A method as a label.
pub(super) fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct RequestLabels {
    route: &'static str,
    method: &'static str,
    code: StatusCode,
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), fmt::Error> {
        let labels = [
            ("route", self.route),
            ("method", self.method),
            ("code", self.code.as_str()),
        ];
        labels.encode(encoder)
    }
}

/// What the front-end counts, and where `/metrics` comes from.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Histogram,
    shed: Counter,
}

impl Metrics {
    pub(super) fn new(database: Arc<dyn Database>) -> Metrics {
        let mut registry = Registry::with_prefix("mydatastore");
        // The registry puts a full stop behind each help text.
        let requests = Family::default();
        registry.register("http_requests", "HTTP requests answered", requests.clone());
        // 0.1 ms to 13 s.
        let seconds = Histogram::new(exponential_buckets(1e-4, 2.0, 18));
        registry.register(
            "http_request_duration_seconds",
            "From a request's head to the head of its answer",
            seconds.clone(),
        );
        let shed: Counter = Counter::default();
        registry.register(
            "http_requests_shed",
            "HTTP requests refused because too many were in progress",
            shed.clone(),
        );
        registry.register_collector(Box::new(Samples(database)));
        Metrics {
            registry,
            requests,
            seconds,
            shed,
        }
    }

    pub(super) fn record(
        &self,
        route: &'static str,
        method: &'static str,
        code: StatusCode,
        elapsed: Duration,
    ) {
        let labels = RequestLabels {
            route,
            method,
            code,
        };
        self.requests.get_or_create(&labels).inc();
        self.seconds.observe(elapsed.as_secs_f64());
    }

    pub(super) fn shed(&self) {
        self.shed.inc();
    }
}

pub(super) async fn metrics(State(app): Shared) -> Response {
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &app.metrics.registry) {
        tracing::error!(%error, "metrics could not be written");
        let message = "metrics could not be written";
        return reply::error(StatusCode::INTERNAL_SERVER_ERROR, message);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], text).into_response()
}

/// The node's samples, read anew at each scrape.
struct Samples(Arc<dyn Database>);

impl fmt::Debug for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Samples")
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let samples = self.0.samples();
        for family in samples.chunk_by(|one, next| one.name == next.name) {
            let first = &family[0];
            let kind = match first.reading {
                Reading::Counter(_) => MetricType::Counter,
                Reading::Gauge(_) => MetricType::Gauge,
                Reading::Histogram { .. } => MetricType::Histogram,
            };
            let mut encoder = encoder.encode_descriptor(first.name, first.help, None, kind)?;
            for sample in family {
                match sample.labels.is_empty() {
                    true => encode_reading(&sample.reading, &mut encoder)?,
                    false => {
                        let mut labelled = encoder.encode_family(&sample.labels)?;
                        encode_reading(&sample.reading, &mut labelled)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn encode_reading(reading: &Reading, encoder: &mut MetricEncoder) -> Result<(), fmt::Error> {
    match reading {
        Reading::Counter(value) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None),
        Reading::Gauge(value) => encoder.encode_gauge(value),
        Reading::Histogram { buckets, sum } => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}
