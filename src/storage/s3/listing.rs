//! Listings, page by page.
//!
//! Invariants owned here: a page that fails is asked for again and no other; a listing that does not
//! get on ends with an error; keys are taken as the server means them, whatever is in them.

use super::client::S3Client;
use super::trouble::{Failed, LineFault, Trouble};
use super::xml;
use http::Method;
use percent_encoding::percent_decode_str;

/// Keys of a page: as many as S3 gives.
pub(super) const PAGE_KEYS: usize = 1000;

/// So many pages in a row may have no keys: old versions and marks of deletion are skipped by the
/// server, a page at a time.
const EMPTY_PAGES_MAX: u32 = 10_000;

/// An object in a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Item {
    pub key: String,
    pub bytes: u64,
    /// When it was put, nanoseconds since 1970.
    pub stored_unix_ns: Option<i64>,
}

#[derive(Debug, Default)]
struct Page {
    items: Vec<Item>,
    /// How to ask for the next page.
    token: Option<String>,
    has_more: bool,
}

/// Gives all objects whose keys begin with `prefix` to `each`, a page at a time, until it says that
/// it has enough.
pub(super) async fn pages(
    client: &S3Client,
    prefix: &str,
    page_keys: usize,
    mut each: impl FnMut(Vec<Item>) -> bool,
) -> Result<(), Failed> {
    let page_keys = page_keys.to_string();
    let (mut token, mut last): (Option<String>, String) = (None, String::new());
    let mut empty = 0;
    loop {
        let asked = client.persist(async |_| {
            let mut query = vec![
                ("encoding-type", "url"),
                ("list-type", "2"),
                ("max-keys", page_keys.as_str()),
                ("prefix", prefix),
            ];
            match &token {
                Some(token) => query.insert(0, ("continuation-token", token)),
                None if last.is_empty() => {}
                None => query.push(("start-after", &last)),
            }
            let text = client.own(Method::GET, "", &query, "").await?;
            page(&text, prefix).map_err(|cause| Trouble::line(LineFault::Nonsense, cause))
        });
        let page = match asked.await {
            Ok(page) => page,
            // Tokens may be short-lived; the last key is as good.
            Err(failed) if token.is_some() && failed.trouble.status() == Some(400) => {
                token = None;
                continue;
            }
            Err(failed) => return Err(failed),
        };
        let newest = page.items.iter().map(|item| item.key.as_str()).max();
        let gets_on = match newest {
            Some(newest) => newest > last.as_str(),
            None => !page.has_more || page.token.is_some(),
        };
        empty = if newest.is_some() { 0 } else { empty + 1 };
        if !gets_on || empty > EMPTY_PAGES_MAX {
            let text = "a listing does not get on: a page begins where the one before it did";
            return Err(Trouble::line(LineFault::Nonsense, text).into());
        }
        last = newest.map_or(last, str::to_owned);
        let wants_more = each(page.items);
        if !page.has_more || !wants_more {
            return Ok(());
        }
        token = page.token;
    }
}

/// Reads a page.
fn page(text: &str, prefix: &str) -> Result<Page, String> {
    let mut page = Page::default();
    let mut item = Item::default();
    let mut problem = None;
    let (mut is_encoded, mut is_listing) = (false, false);
    xml::elements(text, |path, word| match path {
        "/ListBucketResult" => is_listing = true,
        "/ListBucketResult/EncodingType" => is_encoded = word == "url",
        "/ListBucketResult/IsTruncated" => page.has_more = word.trim() == "true",
        "/ListBucketResult/NextContinuationToken" => page.token = Some(word.to_owned()),
        "/ListBucketResult/Contents/Key" => item.key = word.to_owned(),
        "/ListBucketResult/Contents/Size" => match word.trim().parse() {
            Ok(bytes) => item.bytes = bytes,
            Err(_) => problem = Some("a listing has a size that is no number"),
        },
        "/ListBucketResult/Contents/LastModified" => {
            let time = word.trim().parse::<jiff::Timestamp>().ok();
            item.stored_unix_ns = time.and_then(|time| i64::try_from(time.as_nanosecond()).ok());
        }
        "/ListBucketResult/Contents" => page.items.push(std::mem::take(&mut item)),
        _ => {}
    })
    .map_err(|cause| format!("cannot read a page of a listing: {cause}"))?;
    if let Some(problem) = problem {
        return Err(problem.into());
    }
    if !is_listing {
        return Err("the answer is no listing".into());
    }
    for item in &mut page.items {
        if is_encoded {
            let spaced = item.key.replace('+', " ");
            item.key = percent_decode_str(&spaced).decode_utf8_lossy().into_owned();
        }
        if !item.key.starts_with(prefix) {
            return Err("a listing has keys that were not asked for".into());
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_with_its_odd_keys() {
        let text = "<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>\
            <Name>b</Name><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
            <Contents><Key>p/a%0Ab+c%2B</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified>\
            <ETag>\"x\"</ETag><Size>17</Size></Contents>\
            <NextContinuationToken>t&amp;1</NextContinuationToken></ListBucketResult>";
        let page = page(text, "p/").unwrap();
        assert!(page.has_more);
        assert_eq!(page.token.as_deref(), Some("t&1"));
        let stored_unix_ns = Some(1_767_323_045_678_000_000);
        assert_eq!(page.items, [Item { key: "p/a\nb c+".into(), bytes: 17, stored_unix_ns }]);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for bad in [
            "<html/>",
            "",
            "<ListBucketResult><Contents><Key>q</Key></Contents></ListBucketResult>",
            "<ListBucketResult><Contents><Key>p/</Key><Size>-1</Size></Contents></ListBucketResult>",
        ] {
            assert!(page(bad, "p/").is_err(), "{bad}");
        }
    }
}
