//! `/subscription`: what a device is told of.

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
};
use nexxus_storage::model::{DeviceId, Problem, SubscriptionId};
use serde_json::{Value, json};

use super::{
    Answer, Api,
    auth::Asker,
    body::Body,
    path::Names,
    problem::malformed,
    write::{json_answer, list_answer, no_content},
};
use crate::domain::subscriptions::{Request, Subscribed, subscription_to_json};

/// Most subscriptions that one request makes.
const AT_ONCE: usize = 100;

/// One subscription, or (an array) several: then all or none.
pub(super) async fn subscribe(State(api): State<Api>, asker: Asker, headers: HeaderMap, body: Body) -> Answer {
    match body.json()? {
        Value::Array(bodies) => subscribe_all(&api, &asker, &headers, bodies).await,
        body => {
            let request = Request::parse(body)?;
            let subscribed = subscribe_one(&api, &asker, &headers, request).await?;
            Ok(json_answer(status_of(subscribed.created), &subscribed.to_json()))
        }
    }
}

async fn subscribe_one(api: &Api, asker: &Asker, headers: &HeaderMap, request: Request) -> Result<Subscribed, Problem> {
    let device = if request.get_only { asker.caller().device.as_ref() } else { Some(asker.device()?) };
    let at_least = asker.wait_for_after(api, headers).await?;
    api.domain.subscribe(&asker.application, &asker.identified, device, request, at_least).await
}

async fn subscribe_all(api: &Api, asker: &Asker, headers: &HeaderMap, bodies: Vec<Value>) -> Answer {
    if bodies.is_empty() || bodies.len() > AT_ONCE {
        return Err(malformed(format!("1 to {AT_ONCE} subscriptions in one request, not {}", bodies.len())).into());
    }
    let requests: Vec<Request> = bodies
        .into_iter()
        .enumerate()
        .map(|(index, body)| Request::parse(body).map_err(|problem| at(index, problem)))
        .collect::<Result<_, _>>()?;
    let mut made: Vec<Subscribed> = Vec::with_capacity(requests.len());
    for (index, request) in requests.into_iter().enumerate() {
        match subscribe_one(api, asker, headers, request).await {
            Ok(subscribed) => made.push(subscribed),
            Err(problem) => {
                take_back(api, asker, &made).await?;
                return Err(at(index, problem).into());
            }
        }
    }
    let is_any_new = made.iter().any(|subscribed| subscribed.created);
    let items: Vec<Value> = made.iter().map(Subscribed::to_json).collect();
    Ok(json_answer(status_of(is_any_new), &json!({ "items": items })))
}

/// Ends what a request made that is refused.
async fn take_back(api: &Api, asker: &Asker, made: &[Subscribed]) -> Result<(), Problem> {
    for subscription in made.iter().filter(|made| made.created).filter_map(|made| made.subscription.as_ref()) {
        api.domain.unsubscribe(&asker.application, &subscription.device, &subscription.id).await?;
    }
    Ok(())
}

/// The problem of one of several, with its place among them.
fn at(index: usize, mut problem: Problem) -> Problem {
    problem.errors = problem.errors.into_iter().map(|error| error.under(&format!("/{index}"))).collect();
    problem.operation = Some(index);
    problem
}

fn status_of(is_new: bool) -> StatusCode {
    if is_new { StatusCode::CREATED } else { StatusCode::OK }
}

pub(super) async fn unsubscribe(State(api): State<Api>, asker: Asker, names: Names) -> Answer {
    let subscription: SubscriptionId = names.id("id")?;
    api.domain.unsubscribe(&asker.application, asker.device()?, &subscription).await?;
    Ok(no_content())
}

pub(super) async fn list(State(api): State<Api>, asker: Asker, names: Names) -> Answer {
    let device: DeviceId = names.id("device")?;
    super::device::own(&api, &asker, &device).await?;
    let subscriptions = api.domain.subscriptions_of(&asker.application, &device).await?;
    Ok(list_answer(subscriptions.iter().map(subscription_to_json).collect()))
}

#[cfg(test)]
mod tests {
    use nexxus_storage::model::{FieldError, problem::ProblemKind};

    use super::*;

    #[test]
    fn a_problem_of_one_of_several_says_which() {
        let problem =
            Problem::new(ProblemKind::InvalidFilter, "bad").with_errors(vec![FieldError::new("/filter/a", "bad")]);
        let problem = at(3, problem);
        assert_eq!((problem.operation, problem.errors[0].path.as_str()), (Some(3), "/3/filter/a"));
    }
}
