//! What operators see: log lines on stderr, and metrics for `/metrics`.

#![warn(missing_docs)]

use std::{io::IsTerminal, sync::OnceLock, time::Duration};

use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use nexxus_storage::{Backends, model::Timestamp, queue::QueueInfo};
use tracing::debug;
use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    config::{Log, LogFormat},
    service::Failure,
};

/// Seconds; from a tenth of a millisecond, which is a sync of a good disk, to ten seconds.
const DURATION_BUCKETS: [f64; 12] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0];

/// How often histograms are summed up; at 10,000 samples a second they hold 800 KB by then.
const UPKEEP: Duration = Duration::from_secs(5);

/// What kind of number a metric is.
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Every metric there is, with what it says.
const METRICS: [(&str, Kind, Unit, &str); 20] = [
    ("nexxus_stage_messages_total", Kind::Counter, Unit::Count, "messages that a stage has handled, by result"),
    ("nexxus_stage_duration_seconds", Kind::Histogram, Unit::Seconds, "time that a stage takes for a batch"),
    ("nexxus_queue_ready", Kind::Gauge, Unit::Count, "messages that wait in a queue"),
    ("nexxus_queue_oldest_seconds", Kind::Gauge, Unit::Seconds, "age of the oldest message that waits in a queue"),
    ("nexxus_queue_dead", Kind::Gauge, Unit::Count, "messages in the dead letters of a queue"),
    ("nexxus_connections", Kind::Gauge, Unit::Count, "open connections of devices, by transport"),
    ("nexxus_deliveries_total", Kind::Counter, Unit::Count, "frames offered to connections, by transport"),
    ("nexxus_replayed_entries_total", Kind::Counter, Unit::Count, "entries of change logs read for who catches up"),
    ("nexxus_resumes_total", Kind::Counter, Unit::Count, "connections that came back with since, by result"),
    ("nexxus_subscriptions", Kind::Gauge, Unit::Count, "subscriptions in the matcher"),
    (
        "nexxus_matcher_unindexed",
        Kind::Gauge,
        Unit::Count,
        "filters under rules that are tested against every change of their model",
    ),
    ("nexxus_journal_fsync_seconds", Kind::Gauge, Unit::Seconds, "mean time of a sync of the journal so far"),
    ("nexxus_journal_fsyncs_total", Kind::Counter, Unit::Count, "syncs of the journal"),
    ("nexxus_disk_free_bytes", Kind::Gauge, Unit::Bytes, "free space of the disk that holds the data"),
    ("nexxus_disk_reserve_bytes", Kind::Gauge, Unit::Bytes, "free space below which nothing may grow (507)"),
    ("nexxus_backups_total", Kind::Counter, Unit::Count, "backups that were taken, by result"),
    ("nexxus_backup_last_seconds", Kind::Gauge, Unit::Seconds, "when the last backup succeeded, in Unix time"),
    ("nexxus_http_requests_total", Kind::Counter, Unit::Count, "requests, by route and status"),
    ("nexxus_http_duration_seconds", Kind::Histogram, Unit::Seconds, "time that requests take, by route"),
    ("nexxus_process_start_time_seconds", Kind::Gauge, Unit::Seconds, "when this process started, in Unix time"),
];

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

type ChangeFilter = Box<dyn Fn(EnvFilter) -> Result<(), Failure> + Send + Sync>;

static FILTER: OnceLock<ChangeFilter> = OnceLock::new();

/// Begins to log and to count. To be called once, before anything is logged.
pub fn start(log: &Log) -> Result<(), Failure> {
    let builder = fmt().with_writer(std::io::stderr).with_env_filter(filter_of(&log.level)?);
    let change: ChangeFilter = match log.format {
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init()?;
            Box::new(move |filter| Ok(handle.reload(filter)?))
        }
        LogFormat::Text => {
            let builder = builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init()?;
            Box::new(move |filter| Ok(handle.reload(filter)?))
        }
    };
    // A second start would have failed above.
    let _first = FILTER.set(change);
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".to_owned()), &DURATION_BUCKETS)?
        .install_recorder()?;
    for (name, kind, unit, says) in METRICS {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, unit, says),
            Kind::Gauge => metrics::describe_gauge!(name, unit, says),
            Kind::Histogram => metrics::describe_histogram!(name, unit, says),
        }
    }
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    metrics::gauge!("nexxus_process_start_time_seconds").set(started.as_secs_f64());
    // A second start would have failed above.
    let _first = RECORDER.set(handle);
    Ok(())
}

/// Logs by another level from now on.
pub fn change_level(level: &str) -> Result<(), Failure> {
    let filter = filter_of(level)?;
    FILTER.get().map_or(Ok(()), |change| change(filter))
}

fn filter_of(level: &str) -> Result<EnvFilter, Failure> {
    EnvFilter::try_new(level).map_err(|error| format!("`log.level`: {error}").into())
}

/// Sums up what the histograms have gathered, until it is dropped: without it they would grow for as long as nobody asks for the
/// metrics.
pub async fn keep() {
    let mut rounds = tokio::time::interval(UPKEEP);
    loop {
        rounds.tick().await;
        if let Some(recorder) = RECORDER.get() {
            recorder.run_upkeep();
        }
    }
}

/// Takes in what is not counted as it happens: how full the queues and the disk are, and how the journal syncs. To be called before
/// [`render`]; what a backend cannot say now stays as it was.
pub async fn sample(backends: &Backends) {
    match backends.queues.list().await {
        Ok(queues) => queues.iter().for_each(sample_queue),
        Err(error) => debug!(%error, "the queues cannot be counted"),
    }
    match backends.statistics().await {
        Ok(statistics) => {
            let journal = &statistics["journal"];
            metrics::counter!("nexxus_journal_fsyncs_total").absolute(journal["fsyncs"].as_u64().unwrap_or_default());
            metrics::gauge!("nexxus_journal_fsync_seconds").set(journal["fsyncSeconds"].as_f64().unwrap_or_default());
            let disk = &statistics["disk"];
            metrics::gauge!("nexxus_disk_free_bytes").set(disk["free"].as_f64().unwrap_or_default());
            metrics::gauge!("nexxus_disk_reserve_bytes").set(disk["reserve"].as_f64().unwrap_or_default());
        }
        Err(error) => debug!(%error, "the journal and the disk cannot be counted"),
    }
}

fn sample_queue(info: &QueueInfo) {
    let ready = info.ready as f64;
    if let Some(queue) = info.name.strip_suffix(".dead") {
        return metrics::gauge!("nexxus_queue_dead", "queue" => queue.to_owned()).set(ready);
    }
    let waited_ms = info.oldest.map_or(0, |oldest| Timestamp::now().as_ms() - oldest.as_ms()).max(0);
    metrics::gauge!("nexxus_queue_ready", "queue" => info.name.clone()).set(ready);
    metrics::gauge!("nexxus_queue_oldest_seconds", "queue" => info.name.clone()).set(waited_ms as f64 / 1000.0);
}

/// The metrics in Prometheus' text format; empty before [`start`].
pub fn render() -> String {
    RECORDER.get().map(PrometheusHandle::render).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// The names of metrics in calls of the metrics crate's macros.
    fn names_in(folder: &Path, into: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                names_in(&path, into);
            } else {
                let text = fs::read_to_string(&path).expect("a text");
                let calls = text.split("!(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix("\"nexxus_"));
                let names = calls.filter_map(|rest| rest.split_once('"'));
                into.extend(names.map(|(name, _)| format!("nexxus_{name}")).filter(|name| is_name(name)));
            }
        }
    }

    fn is_name(text: &str) -> bool {
        text.chars().all(|character| character.is_ascii_lowercase() || character == '_')
    }

    #[test]
    fn every_metric_is_described_and_counted() {
        let mut counted = Vec::new();
        names_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut counted);
        assert!(counted.len() > 5, "the metrics were not found");
        for name in &counted {
            assert!(METRICS.iter().any(|(known, ..)| known == name), "{name} is not in METRICS");
        }
        for (name, ..) in METRICS {
            assert!(counted.iter().any(|counted| counted == name), "nothing counts {name}");
        }
    }
}
