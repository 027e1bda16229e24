//! The governor changes rules, schema and users while everybody works, one after the other, and writes down from where on each is in
//! force.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    evidence::Who,
    scene::{N_USERS, Scene},
    worlds::{Alteration, Facts, Rule, World},
};

/// Milliseconds between two changes.
const PAUSE_MS: std::ops::Range<u64> = 300..1_800;

pub(crate) struct Governor {
    scene: Scene,
    chance: StdRng,
    world: World,
    /// Numbers every try: what is in force says which one it is.
    number: usize,
    alterations: Vec<(Alteration, Option<String>)>,
}

/// What is known of a try.
enum Said {
    InForce(String),
    Accepted(String),
    Unknown,
    TurnedAway,
}

impl Governor {
    pub(crate) fn new(scene: Scene) -> Self {
        let chance = scene.chance(3_000);
        Self { scene, chance, world: World::default(), number: 0, alterations: Vec::new() }
    }

    pub(crate) async fn run(mut self) -> Self {
        while !self.scene.over.is_cancelled() {
            let (user, world) = self.next();
            self.alter(user, world).await;
            let pause = Duration::from_millis(self.chance.random_range(PAUSE_MS));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.scene.over.cancelled() => {}
            }
        }
        self
    }

    /// What came about, in order, with the place of each where that can be told.
    pub(crate) async fn alterations(self) -> Vec<Alteration> {
        let mut all = Vec::new();
        for (mut alteration, change) in self.alterations {
            if let Some(change) = change {
                let outcome = self.scene.outcome_of(&change).await;
                let outcome = outcome.unwrap_or_else(|| panic!("in force, and lost: {change} {alteration:?}"));
                assert_eq!(outcome["state"], "applied", "{alteration:?}: {outcome}");
                alteration.offset = outcome["offset"].as_str().map(str::to_owned);
            }
            all.push(alteration);
        }
        all
    }

    fn next(&mut self) -> (Option<usize>, World) {
        let mut world = self.world;
        let kind = |chance: &mut StdRng| [None, Some("a"), Some("b"), Some("c")][chance.random_range(0..4)];
        match self.chance.random_range(0..10) {
            0..5 => world.rule = Rule::ALL[self.chance.random_range(0..Rule::ALL.len())],
            5 => world.hides_tag = !world.hides_tag,
            6 => world.has_extra = true,
            _ => {
                let user = self.chance.random_range(0..N_USERS);
                world.facts[user] = Facts { team: kind(&mut self.chance), user_type: kind(&mut self.chance) };
                return (Some(user), world);
            }
        }
        (None, world)
    }

    async fn alter(&mut self, user: Option<usize>, world: World) {
        self.number += 1;
        let (path, request) = match user {
            Some(user) => {
                let path = format!("/admin/users/{}", self.scene.user_ids()[user]);
                let Facts { team, user_type } = world.facts[user];
                let body = json!({ "userType": user_type, "details": { "team": team, "number": self.number } });
                (path.clone(), self.scene.request(Who::Admin, Method::PATCH, &path).await.json(&body))
            }
            None => {
                let path = format!("/application/{}", self.scene.app);
                let body = world.definition(self.number);
                (path.clone(), self.scene.request(Who::Admin, Method::PUT, &path).await.json(&body))
            }
        };
        let began = Instant::now();
        let said = answer(request).await;
        let ended = Instant::now();
        let (ended, change) = match said {
            Said::InForce(change) => (Some(ended), Some(change)),
            Said::Accepted(change) => (None, Some(change)),
            Said::TurnedAway => return,
            Said::Unknown if self.is_in_force(user, &path).await => (Some(Instant::now()), None),
            Said::Unknown => return,
        };
        self.world = world;
        self.alterations.push((Alteration { user, world, began, ended, offset: None }, change));
    }

    /// Whether the last try has come about, of which nobody was told.
    async fn is_in_force(&self, user: Option<usize>, path: &str) -> bool {
        let (status, body) = self.scene.look(Method::GET, path, None, &Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        match user {
            Some(_) => body["details"]["number"] == json!(self.number),
            None => body["description"] == json!(format!("alteration {}", self.number)),
        }
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Said {
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Said::TurnedAway,
        Err(_) => return Said::Unknown,
    };
    let status = response.status().as_u16();
    let change = response.headers().get("nxx-change-id").and_then(|change| change.to_str().ok()).map(str::to_owned);
    let Ok(body) = response.text().await else { return Said::Unknown };
    match (status, change) {
        (200, Some(change)) => Said::InForce(change),
        (202, Some(change)) => Said::Accepted(change),
        (503 | 504, _) if body.contains("outcome-unknown") => Said::Unknown,
        (429 | 503 | 504, _) => Said::TurnedAway,
        _ => panic!("no answer to a change of what is in force: {status} {body}"),
    }
}
