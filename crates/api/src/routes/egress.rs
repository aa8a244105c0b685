//! What a sandbox reaches of the network.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use serde_json::Value;

use crate::error::{ApiError, Operation};
use crate::extract::{self, Id};
use crate::state::Api;
use crate::wire::{self, EgressPolicy, ErrorBody};

/// Shows the policy; values of headers are `***`.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/egress", operation_id = "getEgress", tag = "egress",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "The policy", body = EgressPolicy),
        (status = 400, description = "Not an id", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "The sandbox cannot be started", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn get_egress(State(api): State<Api>, Id(id): Id) -> Result<Json<Value>, ApiError> {
    api.daemon()?.egress(&id).await.map(Json).map_err(|error| Operation::Egress.failed(error))
}

/// Replaces the policy from now on. Connections that it forbids end.
#[utoipa::path(
    put, path = "/v1/sandbox/{id}/egress", operation_id = "setEgress", tag = "egress",
    params(("id" = String, Path, description = "The sandbox")),
    request_body = EgressPolicy,
    responses(
        (status = 200, description = "The policy as it holds now", body = EgressPolicy),
        (status = 400, description = "The policy makes no sense; the old one holds", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "It could not be changed", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn set_egress(State(api): State<Api>, Id(id): Id, body: Body) -> Result<Json<Value>, ApiError> {
    let policy = wire::object(&extract::small_body(body).await?)?;
    api.daemon()?.set_egress(&id, policy.into()).await.map(Json).map_err(|error| Operation::Egress.failed(error))
}
