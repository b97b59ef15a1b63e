"""A known attack in files of one's own: planted at each image's size, in the form of its neighbours, and scored afterwards."""
