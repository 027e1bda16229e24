//! What is in force, and when: the rules and the schema of one model and the facts of the users, as they change during a run, and what
//! each change means for a subscription. Told from the contract alone (§6), as all of the checker's opinions.

use std::{collections::HashSet, time::Instant};

use serde_json::{Map, Value, json};

use crate::{
    evidence::{Evidence, Offset, Wanted, Who},
    model::{Document, PAPER, definition},
    scene::N_USERS,
};

/// Who may read papers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    Everybody,
    Owner,
    /// Whose kind is the reader's `details.team`.
    OfTeam,
    /// Whose kind is the reader's type.
    OfType,
    Open,
    OpenInOtherWords,
}

impl Rule {
    pub(crate) const ALL: [Self; 6] =
        [Self::Everybody, Self::Owner, Self::OfTeam, Self::OfType, Self::Open, Self::OpenInOtherWords];

    pub(crate) fn spelled(self) -> Value {
        match self {
            Self::Everybody => json!("user"),
            Self::Owner => json!("owner"),
            Self::OfTeam => json!({ "kind": "$user.details.team" }),
            Self::OfType => json!({ "kind": "$user.type" }),
            Self::Open => json!({ "open": true }),
            Self::OpenInOtherWords => json!({ "$or": [{ "$and": [{ "open": { "$eq": true } }] }] }),
        }
    }
}

/// What rules know of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Facts {
    pub(crate) team: Option<&'static str>,
    pub(crate) user_type: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct World {
    pub(crate) rule: Rule,
    /// Users do not see `tag`.
    pub(crate) hides_tag: bool,
    /// There is one more field, which nobody uses.
    pub(crate) has_extra: bool,
    pub(crate) facts: [Facts; N_USERS],
}

impl Default for World {
    fn default() -> Self {
        Self { rule: Rule::Everybody, hides_tag: false, has_extra: false, facts: Default::default() }
    }
}

impl World {
    /// The whole definition of the application. `number` makes each another one.
    pub(crate) fn definition(&self, number: usize) -> Value {
        let mut definition = definition(&self.rule.spelled());
        definition["description"] = json!(format!("alteration {number}"));
        if self.hides_tag {
            definition["schema"][PAPER]["tag"]["hidden"] = json!(true);
        }
        if self.has_extra {
            definition["schema"][PAPER]["extra"] = json!({ "type": "string" });
        }
        definition
    }

    /// What the rule is to somebody.
    fn bound(&self, who: Who) -> Bound {
        let Who::User(user) = who else { return Bound::All };
        match self.rule {
            Rule::Everybody => Bound::All,
            Rule::Owner => Bound::Of(user),
            Rule::OfTeam => Bound::Kind(self.facts[user].team),
            Rule::OfType => Bound::Kind(self.facts[user].user_type),
            Rule::Open | Rule::OpenInOtherWords => Bound::Open,
        }
    }

    /// What somebody sees of a paper.
    pub(crate) fn seen(&self, who: Who, document: &Document) -> Document {
        let mut seen = document.clone();
        if self.hides_tag && who != Who::Admin {
            seen.fields.remove("tag");
        }
        seen
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Bound {
    All,
    Of(usize),
    Kind(Option<&'static str>),
    Open,
}

impl Evidence {
    /// Whether somebody may read a paper.
    pub(crate) fn may_read_paper(&self, who: Who, document: &Document, world: &World) -> bool {
        match world.bound(who) {
            Bound::All => true,
            Bound::Of(user) => self.users.get(user) == document.owner.as_ref(),
            Bound::Kind(kind) => kind.is_some_and(|kind| document.fields.get("kind") == Some(&json!(kind))),
            Bound::Open => document.fields.get("open") == Some(&json!(true)),
        }
    }

    /// What a change from one world to another is to a subscription to papers: whether it must be told of it, and whether it may.
    fn alters(&self, who: Who, wanted: &Wanted, before: &World, after: &World) -> (bool, bool) {
        let is_user = who != Who::Admin;
        let unhides = is_user && before.hides_tag != after.hides_tag;
        if before.bound(who) == after.bound(who) && !unhides {
            return (false, false);
        }
        let shows = |world: &World, id: &str, document: &Document| {
            self.may_read_paper(who, document, world) && self.is_wanted(wanted, PAPER, id, document)
        };
        let differs = self.samples().any(|(id, document)| {
            let (before, after) = (shows(before, id, &document), shows(after, id, &document));
            before != after || unhides && after
        });
        (differs, true)
    }

    /// Papers of every kind that rules and filters ask for.
    fn samples(&self) -> impl Iterator<Item = (&'static str, Document)> + '_ {
        let some = |text: &'static str| [Value::Null, json!(text)];
        let kinds = ["a", "b", "c"].into_iter().map(Value::from).chain([Value::Null]);
        let opens = [json!(true), json!(false), Value::Null];
        kinds.flat_map(move |kind| {
            let opens = opens.clone();
            opens.into_iter().flat_map(move |open| {
                let kind = kind.clone();
                let owners = self.users.iter().map(Some).chain([None]);
                owners.flat_map(move |owner| {
                    let (kind, open) = (kind.clone(), open.clone());
                    [json!(1.0), json!(7.0)].into_iter().flat_map(move |n| {
                        let (kind, open) = (kind.clone(), open.clone());
                        some("a").into_iter().flat_map(move |a| {
                            let mut fields = Map::new();
                            let members = [
                                ("kind", kind.clone()),
                                ("open", open.clone()),
                                ("n", n.clone()),
                                ("meta", json!({ "a": a })),
                            ];
                            for (name, value) in members.into_iter().filter(|(_, value)| !value.is_null()) {
                                fields.insert(name.to_owned(), value);
                            }
                            let document = Document { owner: owner.cloned(), version: 1, fields };
                            [("shared-1", document.clone()), ("other", document)]
                        })
                    })
                })
            })
        })
    }
}

/// A change of what is in force.
#[derive(Debug, Clone)]
pub(crate) struct Alteration {
    /// The user whose facts it changes; none: the application's definition.
    pub(crate) user: Option<usize>,
    /// What is in force from then on.
    pub(crate) world: World,
    pub(crate) began: Instant,
    /// When it was known to be in force, if ever.
    pub(crate) ended: Option<Instant>,
    /// Where it stands, when that was told.
    pub(crate) offset: Option<Offset>,
}

/// What is in force from which offset on.
#[derive(Debug, Default)]
pub(crate) struct Worlds {
    all: Vec<World>,
    alterations: Vec<Alteration>,
}

impl Worlds {
    pub(crate) fn of(evidence: &Evidence) -> Self {
        let alterations = evidence.alterations.clone();
        let all = [World::default()].into_iter().chain(alterations.iter().map(|alteration| alteration.world)).collect();
        Self { all, alterations }
    }

    /// The alterations of which nobody knows yet where they stand, and that may stand here.
    pub(crate) fn that_may_stand_at(&self, offset: &Offset) -> Vec<usize> {
        let fits = |place: usize| {
            let known =
                self.alterations.iter().enumerate().filter_map(|(other, one)| Some((other, one.offset.as_ref()?)));
            known.into_iter().all(|(other, known)| if other < place { known < offset } else { known > offset })
        };
        let all = 0..self.alterations.len();
        all.filter(|place| self.alterations[*place].offset.is_none() && fits(*place)).collect()
    }

    pub(crate) fn at(&self, offset: &Offset) -> Option<usize> {
        self.alterations.iter().position(|alteration| alteration.offset.as_ref() == Some(offset))
    }

    pub(crate) fn settle(&mut self, place: usize, offset: Offset) {
        self.alterations[place].offset = Some(offset);
    }

    pub(crate) fn unsettled(&self) -> impl Iterator<Item = &Alteration> {
        self.alterations.iter().filter(|alteration| alteration.offset.is_none())
    }

    /// How many alterations had come about at an offset.
    fn n_upto(&self, offset: &Offset) -> usize {
        self.alterations.iter().filter(|one| one.offset.as_ref().is_some_and(|known| known <= offset)).count()
    }

    fn n_asked_before(&self, time: Option<Instant>) -> usize {
        self.alterations.iter().filter(|one| time.is_none_or(|time| one.began < time)).count()
    }

    /// What may be in force for something that was decided after an offset, and before a time. Rules and facts are read one after
    /// the other: those of a user may be older than the rules, or newer.
    pub(crate) fn between(&self, offset: &Offset, least: usize, time: Option<Instant>) -> Vec<World> {
        let first = self.n_upto(offset).max(least);
        let last = self.n_asked_before(time).max(first);
        let range = &self.all[first..=last];
        let mut worlds: Vec<World> = Vec::new();
        for rules in range {
            for facts in range {
                let world = World { facts: facts.facts, ..*rules };
                if !worlds.contains(&world) {
                    worlds.push(world);
                }
            }
        }
        worlds
    }

    /// How many were known to be in force before a time.
    pub(crate) fn n_known_before(&self, time: Instant) -> usize {
        let known = |one: &Alteration| one.ended.is_some_and(|ended| ended < time);
        self.alterations.iter().rposition(known).map_or(0, |last| last + 1)
    }

    /// What is wrong with what a device was told of an alteration: the channels to ask for anew. Each subscription: its channel, what it is to,
    /// and whether it surely was there before.
    pub(crate) fn misfit(
        &self,
        evidence: &Evidence,
        who: Who,
        (place, offset): (usize, &Offset),
        told: &[String],
        subscriptions: &[(&String, &Wanted, bool)],
        time: Option<Instant>,
    ) -> Option<String> {
        let alteration = &self.alterations[place];
        let (before, after) = (&self.all[place], &self.all[place + 1]);
        let mut misfits = HashSet::new();
        for context in self.between(offset, place + 1, time) {
            let (before, after) = match alteration.user {
                Some(_) => (World { facts: before.facts, ..context }, World { facts: after.facts, ..context }),
                None => (World { facts: context.facts, ..*before }, World { facts: context.facts, ..*after }),
            };
            let misfit = subscriptions.iter().find_map(|(channel, wanted, is_sure)| {
                let (must, may) = match wanted.model == PAPER {
                    true => evidence.alters(who, wanted, &before, &after),
                    false => (false, false),
                };
                match told.contains(channel) {
                    false if must && *is_sure => Some(format!("{channel} is altered, and not told of")),
                    true if !may => Some(format!("{channel} is told of, and not altered")),
                    _ => None,
                }
            });
            match misfit {
                None => return None,
                Some(misfit) => misfits.insert(misfit),
            };
        }
        Some(format!("{misfits:?} by {before:?} -> {after:?}"))
    }
}
