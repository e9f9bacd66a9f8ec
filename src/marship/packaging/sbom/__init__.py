"""Software bills of materials (SBOM) of this environment, and of an archive.

The format is CycloneDX 1.6 in JSON (ECMA-424). A scanner that reads it, such as osv-scanner,
grype, trivy or Dependency-Track, reports which components have known vulnerabilities.
"""
