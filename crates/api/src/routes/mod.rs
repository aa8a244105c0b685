//! The routes, one file per subject.

mod archive;
mod egress;
mod events;
mod exec;
mod files;
mod health;
mod manage;
mod mounts;
mod objects;
mod openapi;
mod pool;
mod processes;
mod pty;
mod sandbox;
mod sessions;
mod tunnels;
mod upload;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, get};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::ApiError;
use crate::state::Api;
use crate::{auth, linger, trace};

/// All routes, with their description.
pub(crate) fn documented() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(crate::openapi::base())
        .routes(routes!(health::health_check))
        .routes(routes!(sandbox::create_sandbox, sandbox::list_sandboxes))
        .routes(routes!(sandbox::delete_sandbox))
        .routes(routes!(sandbox::is_sandbox_running))
        .routes(routes!(exec::exec_command))
        .routes(routes!(files::read_file, files::write_file, files::delete_file))
        .routes(routes!(manage::list_files))
        .routes(routes!(manage::stat_file))
        .routes(routes!(manage::file_exists))
        .routes(routes!(manage::mkdir))
        .routes(routes!(manage::rename_file))
        .routes(routes!(manage::watch_files))
        .routes(routes!(sessions::create_session))
        .routes(routes!(sessions::delete_session))
        .routes(routes!(pty::pty_terminal))
        .routes(routes!(archive::persist_workspace))
        .routes(routes!(archive::hydrate_workspace))
        .routes(routes!(mounts::mount_bucket))
        .routes(routes!(mounts::unmount_bucket))
        .routes(routes!(mounts::list_mounts))
        .routes(routes!(mounts::sync_bucket))
        .routes(routes!(egress::get_egress, egress::set_egress))
        .routes(routes!(processes::start_process, processes::list_processes, processes::kill_all_processes))
        .routes(routes!(processes::get_process, processes::kill_process))
        .routes(routes!(processes::get_process_logs))
        .routes(routes!(tunnels::create_tunnel, tunnels::delete_tunnel))
        .routes(routes!(pool::get_pool_stats))
        .routes(routes!(pool::prime_pool))
        .routes(routes!(pool::shutdown_prewarmed))
        .routes(routes!(objects::list_bindings))
        .routes(routes!(objects::list_objects))
        .routes(routes!(objects::get_object, objects::head_object, objects::put_object, objects::delete_object))
        .routes(routes!(objects::delete_objects))
        .routes(routes!(events::stream_events))
        .routes(routes!(openapi::get_open_api_schema))
}

/// The whole API.
pub(crate) fn router(api: Api) -> Router {
    let (router, _document) = documented().split_for_parts();
    router
        // A path that names no file is refused in words, and the document's page has more than one name.
        .route("/v1/sandbox/{id}/file", no_path())
        .route("/v1/sandbox/{id}/file/", no_path())
        .route("/v1/sandbox/{id}/file%2F", no_path())
        .route("/v1/openapi.html", get(openapi::page))
        .route("/v1/openapi", get(openapi::page))
        .fallback(no_route)
        .method_not_allowed_fallback(no_route)
        .layer(from_fn_with_state(api.clone(), auth::require_key))
        .layer(from_fn(linger::linger))
        .layer(from_fn(trace::trace))
        .with_state(api)
}

fn no_path() -> MethodRouter<Api> {
    get(files::no_path).put(files::no_path).delete(files::no_path)
}

async fn no_route() -> ApiError {
    ApiError::NoRoute
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
