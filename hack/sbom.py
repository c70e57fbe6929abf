"""The software bill of materials of an image, as CycloneDX JSON. Used by hack/image.

The crates are those that `cargo auditable` recorded in the program itself, after features and
targets are resolved. Tools that read Cargo.lock or `cargo metadata` list every optional crate.
"""

import datetime
import json
import re
import subprocess
import tempfile
import urllib.parse
import uuid
import zlib
from pathlib import Path

# Of the namespace UUIDs are computed in: the same bill has the same number.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/rolegate/rolegate")


def recorded(program):
    """Returns the packages that `cargo auditable` recorded in a program, build tools left out."""
    with tempfile.NamedTemporaryFile() as section:
        subprocess.run(
            ["objcopy", "--dump-section", f".dep-v0={section.name}", program, "/dev/null"],
            check=True,
        )
        packages = json.loads(zlib.decompress(Path(section.name).read_bytes()))["packages"]
    return packages


def licences_of_crates():
    """Returns the licences of all crates of Cargo.lock, by name and version."""
    output = subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version=1"],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    packages = json.loads(output)["packages"]
    # Crates from before SPDX write MIT/Apache-2.0.
    return {
        (package["name"], package["version"]): (package["license"] or "").replace("/", " OR ")
        for package in packages
    }


def licences_of_debian(copyright):
    """Returns the short names of licences in a copyright file, if the file is machine-readable."""
    if not re.match(r"Format(-Specification)?:", copyright):
        return []
    names = re.findall(r"^License:[ \t]*(\S.*?)[ \t]*$", copyright, re.MULTILINE)
    return sorted(set(names))


def crates(program):
    """Returns the components of a program, the program first, and its dependencies."""
    packages = recorded(program)
    licences = licences_of_crates()

    def reference(package):
        return f"pkg:cargo/{package['name']}@{urllib.parse.quote(package['version'])}"

    components, dependencies = [], []
    linked = {index for index, package in enumerate(packages) if package.get("kind") != "build"}
    for index in sorted(linked, key=lambda index: (not packages[index].get("root"), index)):
        package = packages[index]
        component = {
            "type": "application" if package.get("root") else "library",
            "bom-ref": reference(package),
            "name": package["name"],
            "version": package["version"],
            "purl": reference(package),
        }
        licence = licences.get((package["name"], package["version"]))
        if licence:
            component["licenses"] = [{"expression": licence}]
        components.append(component)
        needs = linked.intersection(package.get("dependencies", []))
        dependencies.append(
            {
                "ref": reference(package),
                "dependsOn": sorted(reference(packages[need]) for need in needs),
            }
        )
    return components, dependencies


def debian(packages, distribution, release):
    """Returns the components of packages: triples of name, version and architecture."""
    components = []
    for name, version, architecture in packages:
        quoted = f"{urllib.parse.quote(name)}@{urllib.parse.quote(version)}"
        purl = f"pkg:deb/{distribution}/{quoted}?arch={architecture}&distro={distribution}-{release}"
        component = {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
        }
        file = Path(f"/usr/share/doc/{name}/copyright")
        names = licences_of_debian(file.read_text(errors="replace")) if file.exists() else []
        if names:
            component["licenses"] = [{"license": {"name": licence}} for licence in names]
        components.append(component)
    return components


def document(name, version, program, packages, epoch):
    """Returns the bill of an image with this program and these components of packages."""
    components, dependencies = crates(program)
    image = f"pkg:oci/{name}@{version}"
    top = [components[0]["bom-ref"]] + [package["bom-ref"] for package in packages]
    time = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "container",
                "bom-ref": image,
                "name": name,
                "version": version,
            },
        },
        "components": components + packages,
        "dependencies": [{"ref": image, "dependsOn": sorted(top)}] + dependencies,
    }
    number = uuid.uuid5(NAMESPACE, json.dumps(bill, sort_keys=True))
    bill["serialNumber"] = f"urn:uuid:{number}"
    return json.dumps(bill, indent=1, sort_keys=True) + "\n"
