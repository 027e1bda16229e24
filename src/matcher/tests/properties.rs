//! The matcher against the slow way: every subscription's view asked one by one, through any order of subscribing, changing and
//! unsubscribing. `NEXXUS_FUZZ_SECONDS` lets it look for so long (see CONTRIBUTING).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use nexxus_storage::model::{Caller, ModelName, Rules, Schema, rules::Action, testing};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::*;

const N_DEVICES: usize = 4;

/// What happens, in choices among a case's material.
#[derive(Debug, Clone)]
enum Step {
    Subscribe {
        subscription: usize,
        view: usize,
    },
    Change {
        subscription: usize,
        view: Option<usize>,
    },
    /// The read rule of a view, for one subscription or for all.
    Rule {
        subscription: Option<usize>,
        view: usize,
    },
    Unsubscribe {
        subscription: usize,
    },
    Match {
        before: Option<usize>,
        after: Option<usize>,
    },
}

#[derive(Debug)]
struct Case {
    views: Vec<View>,
    documents: Vec<Document>,
    steps: Vec<Step>,
}

/// A subscription as a caller has it: a filter or none, a rule or none, one document or owner or all.
fn any_view(model: Arc<Model>) -> impl Strategy<Value = View> {
    let schema = Schema { models: [(ModelName::parse("thing").expect("a name"), model.clone())].into() };
    let filter = prop::option::weighted(0.8, testing::filter(&model));
    let rule = prop::option::weighted(0.5, testing::rule_filter(&model));
    let narrowed = (prop::option::weighted(0.2, 0..3_usize), prop::option::weighted(0.2, 1..3_usize));
    (filter, rule, testing::caller(), narrowed, prop::bool::weighted(0.2)).prop_map(
        move |(filter, rule, caller, (id, user), privileged)| {
            let filter = filter.map(|filter| Arc::new(Filter::parse(&filter, &model, true).expect("a filter")));
            let channel = Channel {
                app: "app".parse().expect("an id"),
                model: "thing".parse().expect("a name"),
                id: id.map(|id| format!("d{id}").parse().expect("an id")),
                user: user.map(|user| format!("user-{user}").parse().expect("an id")),
                filter,
            };
            let readable = rule.map_or(Condition::All, |rule| readable(&rule, &caller, &schema));
            View { key: channel.to_string().into(), channel, readable, privileged }
        },
    )
}

fn readable(rule: &Value, caller: &Caller, schema: &Schema) -> Condition {
    let rules = Rules::parse(&json!({ "thing": { "read": rule } }), schema).expect("rules");
    rules.condition(&"thing".parse().expect("a name"), Action::Read, caller)
}

fn any_case(n_views: usize, n_steps: usize) -> impl Strategy<Value = Case> {
    testing::model().prop_flat_map(move |model| {
        let documents = vec((testing::document(&model), 0..3_usize), 2..8).prop_map(|documents| {
            let named = |(document, id): (Document, usize)| Document {
                id: format!("d{id}").parse().expect("an id"),
                created_at: Timestamp::from_ms(0).expect("a time"),
                ..document
            };
            documents.into_iter().map(named).collect::<Vec<_>>()
        });
        (vec(any_view(model), n_views), documents).prop_flat_map(move |(views, documents)| {
            let steps = vec(any_step(views.len(), documents.len()), n_steps);
            steps.prop_map(move |steps| Case { views: views.clone(), documents: documents.clone(), steps })
        })
    })
}

fn any_step(n_views: usize, n_documents: usize) -> impl Strategy<Value = Step> {
    let subscription = move || 0..2 * n_views;
    let document = move || 0..n_documents;
    prop_oneof![
        4 => (subscription(), 0..n_views).prop_map(|(subscription, view)| Step::Subscribe { subscription, view }),
        1 => (subscription(), prop::option::weighted(0.8, 0..n_views))
            .prop_map(|(subscription, view)| Step::Change { subscription, view }),
        1 => (prop::option::weighted(0.8, subscription()), 0..n_views)
            .prop_map(|(subscription, view)| Step::Rule { subscription, view }),
        2 => subscription().prop_map(|subscription| Step::Unsubscribe { subscription }),
        3 => (prop::option::weighted(0.7, document()), prop::option::weighted(0.7, document()))
            .prop_map(|(before, after)| Step::Match { before, after }),
    ]
}

/// The subscriptions as a list.
#[derive(Default)]
struct Plain(BTreeMap<usize, Option<View>>);

impl Plain {
    /// A device has one subscription on a channel.
    fn has_another(&self, number: usize, view: &View) -> bool {
        let is_same = |other: &Option<View>| other.as_ref().is_some_and(|other| other.key == view.key);
        self.0.iter().any(|(other, its)| *other != number && other % N_DEVICES == number % N_DEVICES && is_same(its))
    }

    fn hears(&self, entry: &Entry) -> BTreeMap<DeviceId, Audience> {
        let before = entry.before();
        let mut steps: BTreeMap<DeviceId, Vec<(Arc<str>, crate::domain::view::Step, bool)>> = BTreeMap::new();
        for (number, view) in self.0.iter().filter_map(|(number, view)| Some((number, view.as_ref()?))) {
            if let Some(step) = view.step(before.as_ref(), entry.after()) {
                steps.entry(device(number % N_DEVICES)).or_default().push((view.key.clone(), step, view.privileged));
            }
        }
        let audience =
            |steps: &[(Arc<str>, _, bool)]| Audience::of(steps.iter().map(|(key, step, it)| (key, *step, *it)));
        steps.into_iter().map(|(device, steps)| (device, audience(&steps))).collect()
    }
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let (mut matcher, mut plain) = (Matcher::default(), Plain::default());
    for number in 0..N_DEVICES {
        matcher.connect(&device(number), QUEUE);
    }
    for step in &case.steps {
        match step {
            Step::Subscribe { subscription: number, view } => {
                let view = &case.views[*view];
                if plain.has_another(*number, view) {
                    continue;
                }
                matcher.subscribe(&subscription(*number), &device(number % N_DEVICES), Offset::default(), Some(view));
                plain.0.insert(*number, Some(view.clone()));
            }
            Step::Change { subscription: number, view } => {
                let view = view.map(|view| case.views[view].clone());
                if view.as_ref().is_some_and(|view| plain.has_another(*number, view)) {
                    continue;
                }
                if let Some(known) = plain.0.get_mut(number) {
                    matcher.change(matcher.find(&subscription(*number)).expect("it is known"), view.as_ref());
                    *known = view;
                }
            }
            Step::Rule { subscription: only, view } => {
                let readable = &case.views[*view].readable;
                for (number, its) in plain.0.iter_mut().filter(|(number, _)| only.is_none_or(|only| only == **number)) {
                    let known = matcher.find(&subscription(*number)).expect("it is known");
                    let before = its.as_ref().map(View::effective);
                    its.iter_mut().for_each(|view| view.readable = readable.clone());
                    let after = its.as_ref().map(View::effective);
                    prop_assert_eq!(matcher.effective(known), before.clone());
                    if let Some(ruled) = matcher.rule(known, readable) {
                        prop_assert_eq!(Some(ruled), before.zip(after));
                    }
                }
            }
            Step::Unsubscribe { subscription: number } => {
                let found = matcher.find(&subscription(*number));
                prop_assert_eq!(found.is_some(), plain.0.remove(number).is_some());
                found.into_iter().for_each(|number| matcher.unsubscribe(number));
            }
            Step::Match { before, after } => {
                let entry = change(case, *before, *after);
                prop_assert_eq!(heard(&matcher, &entry), plain.hears(&entry));
            }
        }
    }
    finish(matcher, plain)
}

/// A change of one document: both have its id.
fn change(case: &Case, before: Option<usize>, after: Option<usize>) -> Entry {
    let after = after.map(|after| case.documents[after].clone());
    let before = before.map(|before| case.documents[before].clone()).map(|before| match &after {
        Some(after) => Document { id: after.id.clone(), version: after.version - 1, ..before },
        None => before,
    });
    entry(before.as_ref(), after.as_ref())
}

/// What is told of each is what it was, and nothing stays of what has gone.
fn finish(mut matcher: Matcher, plain: Plain) -> Result<(), TestCaseError> {
    prop_assert_eq!(matcher.n_subscriptions(), plain.0.len());
    for (number, view) in plain.0 {
        let number = matcher.find(&subscription(number)).expect("it is known");
        let listening = matcher.listening(number);
        prop_assert_eq!(listening.is_some(), view.is_some());
        if let Some((listening, view)) = listening.zip(view) {
            prop_assert_eq!(matcher.effective(number), Some(view.effective()));
            prop_assert_eq!(listening.key, view.key);
            prop_assert_eq!((listening.id, listening.user), (view.channel.id, view.channel.user));
            prop_assert_eq!(listening.filter.as_ref(), view.channel.filter.as_ref().map(|it| it.condition()));
            prop_assert_eq!(listening.privileged, view.privileged);
        }
        matcher.unsubscribe(number);
    }
    for number in 0..N_DEVICES {
        matcher.disconnect(&device(number), QUEUE);
    }
    prop_assert!(matcher.is_empty() && matcher.models.is_empty() && matcher.groups.is_empty());
    prop_assert_eq!(matcher.n_unindexed(), 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn the_index_finds_exactly_who_must_hear(case in any_case(10, 60)) {
        check(&case)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// So many that values are shared, nodes are divided and joined, and lists are long.
    #[test]
    fn a_crowd_finds_exactly_who_must_hear(case in any_case(120, 400)) {
        check(&case)?;
    }
}

#[test]
fn fuzz_matcher_against_evaluator() {
    let seconds = std::env::var("NEXXUS_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(1);
    let (begun, mut n_cases) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        // A runner counts its cases over all its runs.
        let mut runner = TestRunner::new(Config { cases: 20, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(&any_case(40, 200), |case| check(&case));
        assert!(outcome.is_ok(), "{}", outcome.err().map(|failure| failure.to_string()).unwrap_or_default());
        n_cases += 20;
    }
    println!("{n_cases} cases in {:?}", begun.elapsed());
}
