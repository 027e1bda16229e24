//! The matcher alone: matching a change, subscribing, unsubscribing, and what its memory comes to. Times are of the processor, so
//! that a busy machine does not show in them, but for the caches that others empty.
//!
//! ```text
//! cargo bench --bench matcher                    criterion, all of it
//! cargo bench --bench matcher -- memory 1000000  resident memory of so many distinct filtered subscriptions (with `price` or
//!                                                `title` after the number: of other filters)
//! cargo bench --bench matcher -- pathological    filters at the limits: what each costs to add, to keep, to match, to remove
//! cargo bench --bench matcher -- rules 1000000   taking in a new read rule with so many subscriptions: at once, and by slices
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{
    BatchSize, BenchmarkId, Criterion,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use nexxus::{
    domain::{Application, alteration::Alteration, view::View},
    matcher::{
        Hit, Matcher,
        crowd::{Crowd, Progress},
    },
};
use nexxus_storage::{
    model::{
        AppId, ChangeId, Channel, DeviceId, Document, Entry, Event, Filter, Model, ModelName, Offset, SubscriptionId,
        Timestamp, change::UserFacts, filter::Condition,
    },
    registry::records,
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(place) = arguments.iter().position(|argument| argument == "memory") {
        let n = arguments.get(place + 1).and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
        return memory(n, arguments.get(place + 2).map_or("owner", |what| what));
    }
    if let Some(place) = arguments.iter().position(|argument| argument == "rules") {
        return rules(arguments.get(place + 1).and_then(|n| n.parse().ok()).unwrap_or(1_000_000));
    }
    if arguments.iter().any(|argument| argument == "pathological") {
        return pathological();
    }
    let mut criterion = Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(40)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    for n in [1, 1_000, 100_000, 1_000_000] {
        let ground = Ground::with(n, owner_and_priority);
        ground.measure_matching(
            &mut criterion,
            "owner = … and priority > …, one hit",
            |n| json!({ "owner": id("owner", n), "priority": 7, "price": 0, "title": "a title" }),
        );
        if n == 1_000_000 {
            ground.measure_subscribing(&mut criterion);
        }
    }
    let ground = Ground::with(100_000, price_range);
    ground.measure_matching(
        &mut criterion,
        "price in [a, b], ten hits",
        |n| json!({ "owner": "nobody", "priority": 7, "price": n as f64 + 9.5, "title": "a title" }),
    );
    let ground = Ground::with(100_000, title_prefix);
    ground.measure_matching(
        &mut criterion,
        "title begins with …, one hit",
        |n| json!({ "owner": "nobody", "priority": 7, "price": 0, "title": format!("{} and more", id("title", n)) }),
    );
    let ground = Ground::with(5_000, |_| json!({ "priority": { "$gt": 5 } }));
    ground.measure_matching(
        &mut criterion,
        "one filter of everybody, everybody hits",
        |_| json!({ "owner": "nobody", "priority": 7, "price": 0, "title": "a title" }),
    );
    criterion.final_summary();
}

/// What the kernel says that this thread has run.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
    }

    fn end(&self, before: Duration) -> Duration {
        self.start().saturating_sub(before)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        static WALL_TIME: WallTime = WallTime;
        WALL_TIME.formatter()
    }
}

fn owner_and_priority(n: usize) -> Value {
    json!({ "owner": id("owner", n), "priority": { "$gt": n % 7 } })
}

fn price_range(n: usize) -> Value {
    json!({ "price": { "$gte": n, "$lt": n + 10 } })
}

fn title_prefix(n: usize) -> Value {
    json!({ "title": { "$prefix": id("title", n) } })
}

/// Of twenty characters.
fn id(what: &str, number: usize) -> String {
    format!("{what:_<10}{number:010}")
}

struct Ground {
    matcher: Matcher,
    model: Model,
    n: usize,
}

impl Ground {
    fn empty(n: usize) -> Self {
        let model = Model::parse(&json!({
            "owner": { "type": "string", "filterable": true }, "priority": { "type": "number", "filterable": true },
            "price": { "type": "number", "filterable": true }, "title": { "type": "string", "filterable": true },
        }));
        Self { matcher: Matcher::default(), model: model.expect("a model"), n }
    }

    /// Every subscription is of a device of its own, which is connected.
    fn with(n: usize, filter: impl Fn(usize) -> Value) -> Self {
        let mut ground = Self::empty(n);
        for number in 0..n {
            ground.subscribe(number, &filter(number));
        }
        ground
    }

    fn subscribe(&mut self, number: usize, filter: &Value) {
        let device = DeviceId::parse(&id("device", number)).expect("an id");
        let view = self.view(filter);
        self.matcher.subscribe(&subscription(number), &device, Offset::default(), Some(&view));
        self.matcher.connect(&device, "websockets-transport_1");
    }

    fn view(&self, filter: &Value) -> View {
        let filter = Filter::parse(filter, &self.model, false).expect("a filter");
        let channel = Channel {
            app: AppId::parse("application_00000001").expect("an id"),
            model: ModelName::parse("item").expect("a name"),
            id: None,
            user: None,
            filter: Some(Arc::new(filter)),
        };
        View { key: channel.to_string().into(), channel, readable: Condition::All, privileged: false }
    }

    fn created(&self, fields: &Value) -> Entry {
        let fields = self.model.accept(fields.as_object().cloned().expect("fields"), true).expect("they fit");
        let time = Timestamp::now();
        let document = Document {
            app: AppId::parse("application_00000001").expect("an id"),
            model: ModelName::parse("item").expect("a name"),
            id: "document_00000000001".parse().expect("an id"),
            user: "user_000000000000001".parse().ok(),
            created_at: time,
            updated_at: time,
            version: 1,
            fields,
        };
        Entry { offset: Offset::new(1, 9), change_id: ChangeId::generate(), time, event: Event::Created { document } }
    }

    /// Changes that go all over the subscriptions, so that nothing of those is in the processor's caches by habit. The change itself
    /// is: it has just been read when it is matched.
    fn measure_matching(&self, criterion: &mut Criterion<CpuTime>, what: &str, fields: impl Fn(usize) -> Value) {
        let mut next = 0;
        let mut change = || {
            next = (next + 7_919) % self.n;
            self.created(&fields(next))
        };
        criterion.bench_with_input(BenchmarkId::new(what, self.n), &self.n, |bencher, _| {
            let matching = |entry: &mut Entry| {
                let hits = self.matcher.matching(entry);
                assert!(!hits.is_empty());
                hits
            };
            bencher.iter_batched_ref(&mut change, matching, BatchSize::NumIterations(64));
        });
    }

    fn measure_subscribing(mut self, criterion: &mut Criterion<CpuTime>) {
        let views: Vec<View> = (0..20_000).map(|n| self.view(&owner_and_priority(self.n + n))).collect();
        let device = DeviceId::parse(&id("device", self.n)).expect("an id");
        let mut next = (0..views.len()).cycle();
        criterion.bench_function(&format!("subscribe and unsubscribe/{}", self.n), |bencher| {
            bencher.iter(|| {
                let number = next.next().unwrap_or(0);
                let id = subscription(self.n + number);
                let number = self.matcher.subscribe(&id, &device, Offset::default(), views.get(number));
                self.matcher.unsubscribe(number);
            });
        });
        let mut longest = Duration::ZERO;
        for number in 0..100_000 {
            let (id, view) = (subscription(self.n + number), views.get(number % views.len()));
            let begun = Instant::now();
            self.matcher.subscribe(&id, &device, Offset::default(), view);
            longest = longest.max(begun.elapsed());
        }
        println!("the longest of 100,000 more subscribes: {longest:?}");
    }
}

/// As the server names them: 16 bytes in hex.
fn subscription(number: usize) -> SubscriptionId {
    let scattered = (number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    SubscriptionId::parse(&format!("{scattered:032x}")).expect("an id")
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}

fn memory(n: usize, what: &str) {
    let filter = match what {
        "price" => price_range,
        "title" => title_prefix,
        _ => owner_and_priority as fn(usize) -> Value,
    };
    let before = resident_kib();
    let begun = Instant::now();
    let ground = Ground::with(n, filter);
    let took = begun.elapsed();
    let bytes = (resident_kib() - before) as f64 * 1024.0 / n as f64;
    println!("{n} subscriptions, {what}: {bytes:.0} bytes each, parsed and added in {took:.2?}");
    let begun = Instant::now();
    drop(ground);
    println!("dropped in {:.2?}", begun.elapsed());
}

const SLICE: Duration = Duration::from_millis(20);

/// Every subscription is of a device and a user of its own, connected, and altered by the new rule.
fn rules(n: usize) {
    let read_by = |read: Value, at: u64| {
        json!({
            "id": "application_00000001", "name": "a", "authEnabled": true, "allowMultipleLogin": true, "offset": Offset::new(1, at),
            "createdAt": Timestamp::now(), "updatedAt": Timestamp::now(), "rules": { "item": { "read": read } },
            "schema": { "item": {
                "owner": { "type": "string", "filterable": true }, "priority": { "type": "number", "filterable": true },
            }},
        })
    };
    let before = read_by(json!("user"), 1);
    let application = |definition: &Value| {
        let record = serde_json::from_value(definition.clone()).expect("a definition");
        Arc::new(Application::compile(record).expect("an application"))
    };
    let entry = |offset: u64, before: &Value, definition: &Value| {
        let event = Event::Defined { definition: definition.clone(), before: Some(before.clone()) };
        Entry { offset: Offset::new(1, offset), change_id: ChangeId::generate(), time: Timestamp::now(), event }
    };
    let mut crowd = Crowd::of(Some(application(&before)));
    let model = crowd.application.as_ref().and_then(|it| it.schema.model("item")).cloned().expect("a model");
    for number in 0..n {
        let record = record(number, &model);
        crowd.matcher.connect(&record.device, "websockets-transport_1");
        crowd.subscribe(record, Some(UserFacts::default()));
    }
    let owner = read_by(json!({ "$or": [{ "priority": { "$lt": 3 } }, { "userId": "$user.id" }] }), 2);
    let changed = entry(2, &before, &owner);
    let begun = Instant::now();
    let n_altered = Alteration::of(&changed).map_or(0, |alteration| crowd.altered_by(&alteration).len());
    let told = begun.elapsed();
    crowd.define(Some(application(&owner)));
    println!("at once: {n_altered} of {n} altered, told in {told:.2?}, with compiling {:.2?}", begun.elapsed());
    let priority = read_by(json!({ "priority": { "$lt": 5 } }), 3);
    let (begun, mut longest, mut n_slices) = (Instant::now(), Duration::ZERO, 0);
    crowd.follow(&entry(3, &owner, &priority));
    let n_altered = loop {
        let slice = Instant::now();
        let progress = crowd.go_on(SLICE);
        n_slices += 1;
        longest = longest.max(slice.elapsed());
        match progress {
            Progress::More => {}
            Progress::Done(altered) => break altered.len(),
            Progress::Lost => unreachable!("it was begun"),
        }
    };
    let took = begun.elapsed();
    println!("by slices: {n_altered} of {n} altered, in {took:.2?}, {n_slices} slices, the longest {longest:.2?}");
}

fn record(number: usize, model: &Model) -> records::Subscription {
    let filter = Filter::parse(&owner_and_priority(number), model, false).expect("a filter");
    let record = json!({
        "app": "application_00000001", "id": subscription(number), "device": id("device", number), "user": id("user", number),
        "model": "item", "channel": format!("app:application_00000001:model:item:filter:{}", filter.hash()),
        "filter": serde_json::from_str::<Value>(filter.canonical()).expect("JSON"), "since": Offset::new(1, 1),
    });
    serde_json::from_value(record).expect("a subscription")
}

/// A thousand subscriptions of each kind, which is what a device may have, beside 100,000 usual ones.
fn pathological() {
    const N: usize = 1_000;
    let ranges = |n: usize| -> Vec<Value> {
        (0..64).map(|at| json!({ "price": { "$gt": at * 1_000 + n, "$lt": at * 1_000 + n + 900 } })).collect()
    };
    let open = |n: usize| -> Vec<Value> { (0..64).map(|at| json!({ "price": { "$gt": at * 1_000 + n } })).collect() };
    let values = |n: usize| -> Vec<Value> { (0..256).map(|at| json!(id("value", n * 256 + at))).collect() };
    let fewer_ranges = |n: usize| ranges(n).split_off(32);
    let kinds: [(&str, &dyn Fn(usize) -> Value); 5] = [
        ("$or of 32 ranges", &|n| json!({ "$or": fewer_ranges(n) })),
        ("$or of 64 ranges with one end", &|n| json!({ "$or": open(n) })),
        ("$not of 32 ranges", &|n| json!({ "$not": { "$or": fewer_ranges(n) } })),
        ("$in of 256 values", &|n| json!({ "owner": { "$in": values(n) } })),
        (
            "$or of 64 $in of 256 values",
            &|n| json!({ "$or": (0..64).map(|at| json!({ "owner": { "$in": values(n * 64 + at) } })).collect::<Vec<_>>() }),
        ),
    ];
    for (what, filter) in kinds {
        let mut ground = Ground::with(100_000, owner_and_priority);
        let change = ground.created(&json!({ "owner": id("value", 5), "priority": 7, "price": 40_500, "title": "a" }));
        // Conditions of sixteen thousand values are large before they are packed: one at a time.
        let (before, mut longest, mut total) = (resident_kib(), Duration::ZERO, Duration::ZERO);
        for n in 0..N {
            let (number, view) = (100_000 + n, ground.view(&filter(n)));
            let device = DeviceId::parse(&id("device", number)).expect("an id");
            ground.matcher.connect(&device, "websockets-transport_1");
            let begun = Instant::now();
            ground.matcher.subscribe(&subscription(number), &device, Offset::default(), Some(&view));
            longest = longest.max(begun.elapsed());
            total += begun.elapsed();
        }
        let kib = (resident_kib() - before) as f64 / N as f64;
        let begun = Instant::now();
        let n_hits: usize = (0..100).map(|_| n_devices(&ground.matcher.matching(&change))).sum::<usize>() / 100;
        let matched = begun.elapsed() / 100;
        let begun = Instant::now();
        for number in (0..N).filter_map(|n| ground.matcher.find(&subscription(100_000 + n))).collect::<Vec<_>>() {
            ground.matcher.unsubscribe(number);
        }
        let removed = begun.elapsed() / N as u32;
        let added = total / N as u32;
        println!(
            "{what}: {kib:.1} KiB each, added in {added:.1?} (longest {longest:.1?}), removed in {removed:.1?}, a match with {n_hits} hits {matched:.1?}"
        );
    }
}

fn n_devices(hits: &[Hit]) -> usize {
    hits.iter().flat_map(|hit| &hit.devices).map(|(_, devices)| devices.len()).sum()
}
