//! Values as the API server reads them: in a map of texts null is an empty text.

use serde_json::Value;

/// Maps of texts of an object's metadata.
const TEXT_MAPS: &[&str] = &["annotations", "labels"];

/// Makes null in annotations and labels an empty text, as the API server does: in the metadata of an
/// object, and in Kubernetes' own groups in that of templates too.
pub(super) fn settle(object: &mut Value, group: &str) {
    // Groups of custom resources have a dot, and their templates are what their makers say.
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
