//! A definition is taken in by slices: there may be a million subscriptions to compile anew, and others wait for the same thread.
//!
//! Each is compiled once. Where only rules have changed, its filter is not even read; and what it asked for before is told by what
//! was compiled for the definition before, where that is known.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use nexxus_storage::model::{Caller, DeviceId, Entry, Event, ModelName, rules::Action};

use super::{Channels, Crowd, Listener, Number, defined_by, sorted};
use crate::domain::{
    Application,
    alteration::{Alteration, Answer},
};

/// So many are compiled between two looks at the clock.
const AT_ONCE: u32 = 32;

/// How far an entry is taken in.
pub enum Progress {
    /// Not wholly: until it is, nothing may be matched.
    More,
    /// Wholly. The channels of connected devices have to be asked for anew.
    Done(Channels),
    /// It is no longer known, for everything was read anew: so is who has to ask anew.
    Lost,
}

/// What is left to do of an entry.
pub(super) struct Turn {
    alteration: Option<Alteration>,
    /// Whether subscriptions are compiled for the application of the crowd.
    compiles: bool,
    /// What those were compiled for that it has not come to.
    before: Option<Arc<Application>>,
    /// What it comes to next.
    next: Number,
    ways: HashMap<ModelName, Way>,
    /// What became of those that were in a group, by the group and the user. Of one slice: numbers are given again.
    ruled: HashMap<(Number, Option<Number>), (Number, bool)>,
    altered: HashMap<DeviceId, Vec<Arc<str>>>,
}

/// What has to be done with the subscriptions to a model.
#[derive(Clone, Copy)]
struct Way {
    compile: Compile,
    alters: Alters,
}

#[derive(Clone, Copy, PartialEq)]
enum Compile {
    Nothing,
    Rule,
    Everything,
}

/// How it is told whether one is altered.
#[derive(Clone, Copy, PartialEq)]
enum Alters {
    Nothing,
    /// By what was compiled before and after.
    Compiled,
    /// By asking the alteration.
    Asking,
}

impl Turn {
    fn way(&mut self, model: &ModelName, after: Option<&Application>) -> Way {
        if let Some(known) = self.ways.get(model) {
            return *known;
        }
        let both = self.before.as_deref().zip(after).filter(|_| self.compiles);
        let compile = match both {
            Some((before, after)) if before.is_alike_for(after, model) => Compile::Nothing,
            Some((before, after)) if before.differs_in_rules_for(after, model) => Compile::Rule,
            _ if self.compiles => Compile::Everything,
            _ => Compile::Nothing,
        };
        let alters = match &self.alteration {
            Some(alteration) if alteration.is_about(model) => match both {
                Some((before, after)) if alteration.leads(before, after, model) => Alters::Compiled,
                _ => Alters::Asking,
            },
            _ => Alters::Nothing,
        };
        let way = Way { compile, alters };
        self.ways.insert(model.clone(), way);
        way
    }
}

impl Crowd {
    /// Begins to take in an entry of the log. Says whether [`go_on`](Self::go_on) has to be called for it.
    pub fn follow(&mut self, entry: &Entry) -> bool {
        let alteration = Alteration::of(entry);
        let mut turn = Turn {
            alteration: None,
            compiles: false,
            before: self.compiled.clone(),
            next: 0,
            ways: HashMap::new(),
            ruled: HashMap::new(),
            altered: HashMap::new(),
        };
        match &entry.event {
            Event::Defined { definition, .. } => {
                let is_newer = |known: &Arc<Application>| known.record.offset < entry.offset;
                if self.application.as_ref().is_none_or(is_newer) {
                    self.application = defined_by(entry, definition);
                    // Without an application the subscriptions stay as they are: nobody is shown anything then.
                    turn.compiles = self.application.is_some();
                    self.compiled = self.application.clone().or_else(|| self.compiled.take());
                }
                turn.alteration = alteration;
                if turn.alteration.is_none() && !turn.compiles {
                    return false;
                }
            }
            Event::UserChanged { user, after, .. } => {
                // Few enough for one slice.
                turn.altered = alteration.map(|it| self.altered_by(&it)).unwrap_or_default().into_iter().collect();
                turn.next = Number::MAX;
                self.know(user, after.clone().unwrap_or_default());
            }
            _ => return false,
        }
        if let Some(earlier) = self.turn.take() {
            // Whoever follows an entry goes on with it to its end. If not, all are compiled for this one.
            turn.before = None;
            turn.altered.extend(earlier.altered);
        }
        self.turn = Some(Box::new(turn));
        true
    }

    /// Goes on with the entry that was begun last, for about so long.
    pub fn go_on(&mut self, slice: Duration) -> Progress {
        let begun = Instant::now();
        let Some(mut turn) = self.turn.take() else { return Progress::Lost };
        turn.ruled.clear();
        let mut numbers = self.matcher.subscriptions();
        numbers.start = turn.next;
        while !numbers.is_empty() {
            for number in numbers.by_ref().take(AT_ONCE as usize) {
                self.come_to(&mut turn, number);
            }
            if begun.elapsed() >= slice && !numbers.is_empty() {
                turn.next = numbers.start;
                self.turn = Some(turn);
                return Progress::More;
            }
        }
        Progress::Done(sorted(turn.altered))
    }

    fn come_to(&mut self, turn: &mut Turn, number: Number) {
        let listener = Listener { crowd: self, number };
        let Some(model) = listener.model() else { return };
        let Way { mut compile, mut alters } = turn.way(model, self.application.as_deref());
        let is_after = |alteration: &Alteration| alteration.is_after(listener.since());
        if !turn.alteration.as_ref().is_some_and(is_after) || !self.matcher.is_connected(number) {
            alters = Alters::Nothing;
        }
        if self.kept.contains_key(&number) {
            // What was compiled of it, if anything was, does not say all of it.
            compile = if turn.compiles { Compile::Everything } else { Compile::Nothing };
            alters = if alters == Alters::Compiled { Alters::Asking } else { alters };
        }
        let is_altered = match compile {
            Compile::Rule if alters != Alters::Asking => self.rule(turn, number, alters),
            _ => {
                let is_altered = alters == Alters::Asking && self.is_altered(turn, number);
                let before = (alters == Alters::Compiled).then(|| self.answer(number, turn.before.as_deref()));
                if compile != Compile::Nothing {
                    self.compile_again(std::iter::once(number));
                }
                is_altered || before.is_some_and(|before| before != self.answer(number, self.application.as_deref()))
            }
        };
        if is_altered
            && let (Some(device), Some(channel)) =
                (self.matcher.device_of(number), Listener { crowd: self, number }.channel())
        {
            turn.altered.entry(device.clone()).or_default().push(channel);
        }
    }

    fn is_altered(&self, turn: &Turn, number: Number) -> bool {
        let listener = Listener { crowd: self, number };
        let alters = |alteration: &Alteration| {
            let record = listener.record();
            record.is_some_and(|record| alteration.alters(&record, self.application.as_deref(), listener.facts()))
        };
        turn.alteration.as_ref().is_some_and(alters)
    }

    /// As a subscription was compiled for an application.
    fn answer(&self, number: Number, application: Option<&Application>) -> Option<Answer> {
        let (effective, model) = (self.matcher.effective(number)?, self.matcher.model_of(number)?);
        Some(Answer::to(&effective, self.matcher.is_privileged(number), model, application?))
    }

    /// Gives one the read rule that holds now. Says whether that alters it.
    fn rule(&mut self, turn: &mut Turn, number: Number, alters: Alters) -> bool {
        let (Some(application), Some(group)) = (self.application.clone(), self.matcher.group_of_one(number)) else {
            return false;
        };
        if self.matcher.is_privileged(number) {
            // Past all rules, before and after.
            return false;
        }
        let company = self.matcher.is_in_company(number).then(|| (group, self.users.owner(number)));
        if let Some((to, is_altered)) = company.and_then(|key| turn.ruled.get(&key)) {
            self.matcher.move_to(number, *to);
            return alters != Alters::Nothing && *is_altered;
        }
        let facts = Listener { crowd: self, number }.facts().clone();
        let caller = Caller { admin: false, user: self.users.owner_id(number), facts, device: None };
        let Some(model) = self.matcher.model_of(number) else { return false };
        let readable = application.rules.condition(model, Action::Read, &caller);
        let ruled = self.matcher.rule(number, &readable);
        let must_tell = alters != Alters::Nothing || company.is_some();
        let is_altered = ruled.is_some_and(|(before, after)| must_tell && before.normalized() != after.normalized());
        if let (Some(key), Some(to)) = (company, self.matcher.group_of_one(number)) {
            turn.ruled.insert(key, (to, is_altered));
        }
        alters != Alters::Nothing && is_altered
    }
}
