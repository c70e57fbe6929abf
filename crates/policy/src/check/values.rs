//! Normalizes values as the API server does: in string maps, null is an empty string.

use serde_json::Value;

/// String maps of an object's metadata.
const TEXT_MAPS: &[&str] = &["annotations", "labels"];

/// Replaces null in annotations and labels with an empty string, as the API server does: in the
/// metadata of an object and, in Kubernetes' own groups, in that of templates too.
pub(super) fn settle(object: &mut Value, group: &str) {
    // Groups of custom resources contain a dot, and their authors define their templates.
    if !group.contains('.') {
        settle_all(object);
    } else if let Some(metadata) = object.get_mut("metadata") {
        TEXT_MAPS
            .iter()
            .for_each(|field| settle_texts(metadata, field));
    }
}

fn settle_all(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(settle_all),
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == "metadata" {
                    TEXT_MAPS
                        .iter()
                        .for_each(|field| settle_texts(value, field));
                }
                settle_all(value);
            }
        }
        _ => {}
    }
}

fn settle_texts(metadata: &mut Value, field: &str) {
    if let Some(Value::Object(texts)) = metadata.get_mut(field) {
        for text in texts.values_mut().filter(|text| text.is_null()) {
            *text = "".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_is_an_empty_text_in_maps_of_texts_alone() {
        let object = json!({
            "metadata": {"annotations": {"a": null, "b": 1}, "labels": null, "name": null},
            "spec": {"list": [{"metadata": {"labels": {"c": null}}}], "labels": {"d": null}},
        });
        let settled = |group: &str| {
            let mut object = object.clone();
            settle(&mut object, group);
            object
        };
        assert_eq!(
            settled("apps"),
            json!({
                "metadata": {"annotations": {"a": "", "b": 1}, "labels": null, "name": null},
                "spec": {"list": [{"metadata": {"labels": {"c": ""}}}], "labels": {"d": null}},
            })
        );
        let custom = settled("example.com");
        assert_eq!(custom["metadata"]["annotations"]["a"], "");
        assert_eq!(custom["spec"], object["spec"]);
    }
}
