"""Models and encoders: pictures, clips and streams to vectors. Needs torch; opens no sockets, speaks no MQTT."""
