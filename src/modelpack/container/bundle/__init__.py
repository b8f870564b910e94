"""Models as OCI artifacts: in the form of the CNCF ModelPack specification, which other tools read and write too."""
