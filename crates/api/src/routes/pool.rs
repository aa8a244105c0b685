//! The pool of started sandboxes.

use axum::Json;
use axum::extract::State;

use crate::error::{ApiError, Operation};
use crate::state::Api;
use crate::wire::{self, Done, ErrorBody, PoolInfo};

/// How many sandboxes are warm and how many in use.
#[utoipa::path(
    get, path = "/v1/pool/stats", operation_id = "getPoolStats", tag = "pool",
    responses(
        (status = 200, description = "The numbers", body = PoolInfo),
        (status = 401, description = "No key, or another", body = ErrorBody),
    ),
)]
pub(crate) async fn get_pool_stats(State(api): State<Api>) -> Result<Json<PoolInfo>, ApiError> {
    Ok(Json(PoolInfo::from(api.daemon()?.pool_stats().await)))
}

/// Fills the pool.
#[utoipa::path(
    post, path = "/v1/pool/prime", operation_id = "primePool", tag = "pool",
    responses(
        (status = 200, description = "It is full", body = Done),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "A sandbox could not be started", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn prime_pool(State(api): State<Api>) -> Result<Json<Done>, ApiError> {
    api.daemon()?.prime_pool().await.map_err(|error| Operation::Pool.failed(error))?;
    Ok(Json(wire::DONE))
}

/// Ends the warm sandboxes; those in use stay.
#[utoipa::path(
    post, path = "/v1/pool/shutdown-prewarmed", operation_id = "shutdownPrewarmed", tag = "pool",
    responses(
        (status = 200, description = "They are ended", body = Done),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "One could not be removed", body = ErrorBody),
    ),
)]
pub(crate) async fn shutdown_prewarmed(State(api): State<Api>) -> Result<Json<Done>, ApiError> {
    api.daemon()?.empty_pool().await.map_err(|error| Operation::Pool.failed(error))?;
    Ok(Json(wire::DONE))
}
