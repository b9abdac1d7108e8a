"""Pictures of medicine: DICOM files, windows, contrast, regions. `encoders_core.medical_encoder` puts them together."""
