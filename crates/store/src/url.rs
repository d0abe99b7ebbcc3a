//! Parses a store's URL, and writes it for people.

use std::path::{Path, PathBuf, absolute};

use percent_encoding::percent_decode_str;

use crate::error::{ErrorKind, Failure, Result};

#[derive(Debug)]
pub(crate) enum Location {
    Directory(PathBuf),
    Bucket { bucket: String, prefix: String, options: BucketOptions },
}

/// How to reach a bucket.
#[derive(Clone, Debug, Default)]
pub(crate) struct BucketOptions {
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) path_style: Option<bool>,
    /// Sends no credentials, as for public buckets.
    pub(crate) anonymous: bool,
    /// Sends only the checksums that S3 requires, for servers that do not support others.
    pub(crate) checksums_when_required: bool,
    /// Server-side encryption: `AES256` or `aws:kms`.
    pub(crate) sse: Option<String>,
    /// Name of the key for `aws:kms`.
    pub(crate) kms_key: Option<String>,
    /// Seconds until the server must have answered a request.
    pub(crate) timeout: Option<u32>,
}

pub(crate) fn parse(url: &str) -> Result<Location> {
    if let Some(rest) = url.strip_prefix("file:") {
        let path = rest.strip_prefix("//").unwrap_or(rest);
        let path = path.strip_prefix("localhost").unwrap_or(path);
        if !path.starts_with('/') {
            return Err(invalid("file: needs an absolute path, as in file:///data/x"));
        }
        return directory(&decode(path)?);
    }
    if let Some(rest) = url.strip_prefix("s3://") {
        return bucket(rest);
    }
    match url.split_once("://") {
        Some(_) => Err(invalid("unknown scheme (supported: a path, file://, s3://)")),
        None => directory(url),
    }
}

fn directory(path: &str) -> Result<Location> {
    if path.is_empty() || path.chars().any(char::is_control) {
        return Err(invalid("the path is empty or contains a control character"));
    }
    let scheme = path.split(':').next().unwrap_or_default();
    if path[scheme.len()..].starts_with(":/") && scheme.len() > 1 && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(invalid("a scheme needs '://'; write ./ before a path that looks like a URL"));
    }
    Ok(Location::Directory(real(absolute(path)?)))
}

/// The path without links and `..`, as far as it exists, so that one folder has one name.
pub(crate) fn real(path: PathBuf) -> PathBuf {
    let found = path.ancestors().find_map(|part| Some((part.canonicalize().ok()?, part)));
    match found {
        Some((real, part)) => match path.strip_prefix(part) {
            Ok(rest) if rest.as_os_str().is_empty() => real,
            Ok(rest) if !rest.components().any(|c| c == std::path::Component::ParentDir) => real.join(rest),
            _ => path,
        },
        None => path,
    }
}

fn bucket(rest: &str) -> Result<Location> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.is_empty() || !bucket.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
        return Err(invalid("a bucket's name may contain only letters, digits, '-', '.' and '_'"));
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if !prefix.is_empty() {
        crate::key::check(prefix)?;
    }
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let mut options = BucketOptions::default();
    for option in query.split('&').filter(|o| !o.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value = decode(value)?;
        match (name, value.as_str()) {
            ("endpoint", v) if is_plain_http(v) => options.endpoint = Some(value),
            ("endpoint", _) => {
                return Err(invalid("endpoint must be http(s)://host:port, without user or password"));
            }
            ("region", _) => options.region = Some(value),
            ("path_style", "true") => options.path_style = Some(true),
            ("path_style", "false") => options.path_style = Some(false),
            ("anonymous", "true") => options.anonymous = true,
            ("anonymous", "false") => options.anonymous = false,
            ("checksums", "when_supported") => options.checksums_when_required = false,
            ("checksums", "when_required") => options.checksums_when_required = true,
            ("sse", "AES256" | "aws:kms") => options.sse = Some(value),
            ("kms_key", v) if is_key_name(v) => options.kms_key = Some(value),
            ("timeout", v) if matches!(v.parse(), Ok(1..=3600)) => options.timeout = v.parse().ok(),
            ("timeout", _) => return Err(invalid("timeout must be a number of seconds from 1 to 3600")),
            ("kms_key", _) => return Err(invalid("kms_key must be the id, the ARN or the alias (alias/…) of a key")),
            _ => {
                return Err(invalid(
                    "options are endpoint, region, path_style=true|false, anonymous=true|false, \
                     checksums=when_supported|when_required, sse=AES256|aws:kms, kms_key, timeout",
                ));
            }
        }
    }
    if options.kms_key.is_some() && options.sse.as_deref() != Some("aws:kms") {
        return Err(invalid("kms_key needs sse=aws:kms"));
    }
    Ok(Location::Bucket { bucket: bucket.to_owned(), prefix, options })
}

fn is_plain_http(endpoint: &str) -> bool {
    let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    host.is_some_and(|h| !h.is_empty() && !h.contains(['@', '?', '#', '&', '%']) && h.chars().all(|c| c.is_ascii_graphic()))
}

fn is_key_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_/:".contains(c))
}

impl BucketOptions {
    /// The options as part of a URL, or nothing.
    pub(crate) fn to_query(&self) -> String {
        let mut options = Vec::new();
        options.extend(self.endpoint.as_ref().map(|e| format!("endpoint={e}")));
        options.extend(self.region.as_ref().map(|r| format!("region={r}")));
        options.extend(self.path_style.map(|p| format!("path_style={p}")));
        options.extend(self.anonymous.then(|| "anonymous=true".to_owned()));
        options.extend(self.checksums_when_required.then(|| "checksums=when_required".to_owned()));
        options.extend(self.sse.as_ref().map(|s| format!("sse={s}")));
        options.extend(self.kms_key.as_ref().map(|k| format!("kms_key={k}")));
        options.extend(self.timeout.map(|t| format!("timeout={t}")));
        if options.is_empty() { String::new() } else { format!("?{}", options.join("&")) }
    }
}

/// `url` for an error message: without options, and without anything before an '@'.
pub(crate) fn without_secrets(url: &str) -> String {
    let (place, _) = url.split_once('?').unwrap_or((url, ""));
    match (place.split_once("://"), place.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) if scheme != "file" => format!("{scheme}://…@{host}"),
        _ => place.to_owned(),
    }
}

/// The `file:` URL of a directory, which `parse` reads back.
pub(crate) fn of_path(path: &Path) -> String {
    let path = path.to_string_lossy();
    let path = path.strip_suffix('/').unwrap_or(&path);
    format!("file://{}", path.replace('%', "%25"))
}

fn decode(text: &str) -> Result<String> {
    let complete = |part: &str| part.get(..2).is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|_| text.split('%').skip(1).all(complete));
    let decoded = decoded.ok_or_else(|| invalid("'%' must be followed by two hexadecimal digits, and the result must be UTF-8"));
    Ok(decoded?.into_owned())
}

fn invalid(problem: &str) -> Failure {
    Failure::new(ErrorKind::InvalidUrl, problem)
}
