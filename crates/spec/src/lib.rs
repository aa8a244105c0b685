//! The product's words, parsed and checked. Pure: no socket, file or clock.
#![forbid(unsafe_code)]

mod binding;
mod bucket;
mod credentials;
mod endpoint;
mod mount_path;
mod path_class;
mod plan;
mod prefix;
mod provider;
mod s3fs;
mod units;

pub use binding::{Binding, BindingName, InvalidBinding, Keys, Remote};
pub use bucket::{BucketName, InvalidBucket};
pub use credentials::{Credentials, SecretKey};
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use mount_path::{InvalidMountPath, MountPath};
pub use path_class::{AGENT_RULES, InvalidPathClass, PathClass, PathClasses, UnknownPathClass};
pub use plan::{
    BucketPlace, InvalidMount, MountClass, MountMode, MountOptions, MountPlan, MountRequest, MountSource, Surroundings,
    plan,
};
pub use prefix::{InvalidPrefix, KeyPrefix};
pub use provider::{Provider, UnknownProvider};
pub use s3fs::{InvalidS3fsOption, S3fsKind, S3fsOptions, WITHOUT_EFFECT};
pub use units::{InvalidUnit, parse_bytes, parse_duration, parse_mode};
