//! One application under test: who is there, and where the server is at this moment.

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    evidence::Who,
    harness::{App, Server, User},
    model,
    worlds::World,
};

pub(crate) const N_USERS: usize = 3;
/// How long one request may take before its client gives up. Longer than any pause of the server.
const REQUEST: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) app: String,
    people: Vec<User>,
    admin: User,
    /// Where the server is; none while it is down.
    place: watch::Receiver<Option<String>>,
    /// The writers stop, the listeners stay until they have heard everything.
    pub(crate) over: CancellationToken,
    seed: u64,
}

impl Scene {
    pub(crate) async fn set(server: &Server, app: &str, place: watch::Receiver<Option<String>>, seed: u64) -> Self {
        let mut definition = World::default().definition(0);
        definition["id"] = json!(app);
        let app: App = server.app_as(definition).await;
        let mut people = Vec::new();
        for number in 0..N_USERS {
            people.push(app.user(&format!("user-{number}")).await);
        }
        Self { app: app.id.clone(), admin: app.admin(), people, place, over: CancellationToken::new(), seed }
    }

    pub(crate) fn user_ids(&self) -> Vec<String> {
        self.people.iter().map(|user| user.id.clone()).collect()
    }

    /// Chance for one part of the run, the same for the same seed.
    pub(crate) fn chance(&self, part: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(1_000_003).wrapping_add(part))
    }

    pub(crate) fn person(&self, who: Who) -> &User {
        match who {
            Who::Admin => &self.admin,
            Who::User(place) => &self.people[place],
        }
    }

    /// Waits until the server is up; gives its address.
    pub(crate) async fn url(&self) -> String {
        let mut place = self.place.clone();
        let url = place.wait_for(Option::is_some).await.expect("the run goes on");
        url.clone().expect("an address")
    }

    /// A request to where the server is now.
    pub(crate) async fn request(&self, who: Who, method: Method, path: &str) -> RequestBuilder {
        let person = self.person(who);
        let app = person.app.at(&self.url().await);
        User { app, ..person.clone() }.request(method, path).timeout(REQUEST)
    }

    /// A read as the admin; the server may be away meanwhile.
    pub(crate) async fn look(&self, method: Method, path: &str, after: Option<&str>, body: &Value) -> (u16, Value) {
        for _ in 0..200 {
            let mut request = self.request(Who::Admin, method.clone(), path).await;
            if let Some(after) = after {
                request = request.header("nxx-after", after);
            }
            if !body.is_null() {
                request = request.json(body);
            }
            if let Ok(response) = request.send().await {
                let status = response.status().as_u16();
                if let Ok(text) = response.text().await
                    && !matches!(status, 503 | 504)
                {
                    return (status, serde_json::from_str(&text).unwrap_or(Value::Null));
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{method} {path} of {} is not answered", self.app);
    }

    /// What became of a change: state, offset, problem.
    pub(crate) async fn outcome_of(&self, change: &str) -> Option<Value> {
        let (status, body) = self.look(Method::GET, &format!("/changes/{change}"), None, &Value::Null).await;
        match status {
            200 => Some(body),
            404 => None,
            _ => panic!("GET /changes/{change}: {status} {body}"),
        }
    }

    /// The only document of the model that everybody listens to; gives the change.
    pub(crate) async fn mark(&self, id: &str) -> String {
        for _ in 0..200 {
            let request = self.request(Who::Admin, Method::POST, &format!("/model/{}", model::END)).await;
            if let Ok(response) = request.json(&json!({ "id": id })).send().await
                && response.status().as_u16() == 202
            {
                let body: Value = response.json().await.expect("a body");
                return body["changeId"].as_str().expect("an id").to_owned();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} takes no writes", self.app);
    }
}
