"""Making reference data: labelling structures with electronic-structure methods and sampling geometries."""
